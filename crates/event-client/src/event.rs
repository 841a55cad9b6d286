//! The `Event` trait: name, version, key and schema of an event type, and the conversion from older versions.
//!
//! # Deploying a new version
//!
//! A change that old readers cannot decode needs a new version: a new type with `version = 2` and
//! `upcast_from = OrderPlacedV1`. Publishers and consumers may be deployed in any order, and old and new members of a
//! group may run at the same time:
//!
//! - A handler of `Msg<T>` or `Batch<T>` subscribes its group to every version of its event,
//!   [`orders.placed.*`](Event::pattern). Members that know different versions therefore use the same pattern, and a
//!   restart of a member does not change the group. Older builds of this library subscribed single versions: the first
//!   member of this build widens the pattern of such a group, and a member of an older build that restarts narrows it
//!   until the next member of this build starts. Therefore replace the older builds before you publish the first
//!   version 2. With `provision=verify` first run `backbone topology apply` with the topology of this build.
//! - A member that receives a version it does not know [defers](crate::delivery::Settlement::Defer) the message: the
//!   attempt is not counted, the member continues with other messages, and the transport delivers the message again, to
//!   any member of the group, after a pause that grows from 0.1 s to one minute. In a keyed group the later messages of
//!   the same key wait for it; other keys continue. On a transport where one member of a keyed group works while the
//!   others stand by, the working member leaves the group for two seconds, so that another member takes over. It leaves
//!   when the group has other members, again when their number has changed, and otherwise at growing intervals of at
//!   most half an hour.
//! - If no member knows the version within the time set with
//!   [`Handler::await_version`](crate::service::Handler::await_version) (default: 24 h), the event becomes a dead
//!   letter with the reason `unknown-version`. It can be replayed once a member knows the version. The time starts when
//!   the store received the event (at its CloudEvents `time` where the store does not record it), or when the deciding
//!   member first received that version, whichever is later: a group that was down for days therefore does not reject
//!   its backlog at once. The time starts again when the member restarts, and when it has not received the version for
//!   twelve hours; for replayed dead letters it starts when the member first receives one.
//! - The log names the deferred version and the time since when the member receives it, at most once per minute; the
//!   counter `event_client_unknown_version_total` counts the deferred messages.
//!
//! Deploying the consumer first is therefore the fastest order. Deploying the publisher first delays the new events
//! until a consumer knows them, and rolling the consumer back delays them until it is rolled forward. A version below
//! `since` is treated in the same way. Another event type under the event's subject becomes a dead letter with the
//! reason `unknown-type` at once; a message whose subject matches the pattern but is not a version
//! (`orders.placed.again`) is acknowledged. Handlers of `Dynamic` and `Raw` accept every version that their pattern
//! matches; a broadcast handler skips versions that it does not know.
//!
//! The number of waiting messages is limited by the number of unsettled messages that the transport allows:
//! `max_unsettled` per group on NATS, and 1024 messages if the group is keyed; 10,000 messages per keyed group and
//! topic on Redis; `keyed_backlog` on RabbitMQ. At this limit the whole group waits.

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::envelope::Envelope;
use crate::subject::{Pattern, Subject};
use event_transport::error::{Error, ErrorKind, Result};

pub use schemars::{JsonSchema, Schema};

/// An event type that services publish and consume. Implemented by `#[derive(Event)]`.
///
/// ```
/// use event_client::Event;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Event, Serialize, Deserialize, JsonSchema)]
/// #[event(name = "orders.placed", version = 1, key = order_id)]
/// pub struct OrderPlacedV1 { pub order_id: u64, pub euros: i64 }
///
/// #[derive(Event, Serialize, Deserialize, JsonSchema)]
/// #[event(name = "orders.placed", version = 2, key = order_id, upcast_from = OrderPlacedV1)]
/// pub struct OrderPlaced { pub order_id: u64, pub cents: i64 }
///
/// impl From<OrderPlacedV1> for OrderPlaced {
///     fn from(v1: OrderPlacedV1) -> Self { Self { order_id: v1.order_id, cents: v1.euros * 100 } }
/// }
///
/// assert_eq!(OrderPlaced::SUBJECT, "orders.placed.v2");
/// let subjects: Vec<_> = OrderPlaced::subjects()?.iter().map(ToString::to_string).collect();
/// assert_eq!(subjects, ["orders.placed.v2", "orders.placed.v1"]);
/// # Ok::<(), event_client::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "needs `#[derive(Event)]`",
    note = "write #[derive(Event, Serialize, Deserialize, JsonSchema)] and #[event(name = \"orders.placed\", version = 1)]"
)]
pub trait Event: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Stable name: the topic and the occurrence in the past tense, such as `orders.placed`.
    const NAME: &'static str;
    /// Major version, from 1. A change that old readers cannot decode needs a new version.
    const VERSION: u32;
    /// Name and version: `orders.placed.v1`. It is the subject and the CloudEvents type.
    const SUBJECT: &'static str;

    /// The ordering key: keyed handlers receive events of one topic with the same key in order. Default: no key.
    fn key(&self) -> Option<SmolStr> {
        None
    }

    /// This version and the older versions that are converted into it, newest first.
    fn lineage() -> Vec<Version>;

    /// Decodes data of any version in the lineage and converts it to this version.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownType`] for a version outside the lineage, [`ErrorKind::Decode`] for invalid bytes.
    fn decode(version: u32, envelope: &Envelope) -> Result<Self>;

    /// The JSON Schema of the data.
    fn schema() -> Schema {
        schemars::schema_for!(Self)
    }

    /// The pattern of every version of this event, including future ones: `orders.placed.*`. A handler's group
    /// subscribes to it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] when [`Event::NAME`] breaks the naming rules.
    fn pattern() -> Result<Pattern> {
        Pattern::new(format!("{}.*", Self::NAME))
    }

    /// The subjects of all versions in the lineage, newest first.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the chain of upcasters has a gap, joins events with different names or does not reach
    /// the oldest version; [`ErrorKind::InvalidName`] when a subject breaks the naming rules.
    fn subjects() -> Result<Vec<Subject>> {
        let lineage = Self::lineage();
        for step in lineage.windows(2) {
            if step[0].name != step[1].name || step[0].number != step[1].number + 1 {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "`{}` v{} upcasts from `{}` v{}: the chain of versions has a gap; upcast from v{} of the same name",
                        step[0].name,
                        step[0].number,
                        step[1].name,
                        step[1].number,
                        step[0].number.saturating_sub(1)
                    ),
                ));
            }
        }
        match lineage.last() {
            Some(oldest) if oldest.number != oldest.since => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`{}` starts at v{} and cannot read v{}; add `upcast_from`, or `since = {}` if no older event is stored any more",
                    oldest.name,
                    oldest.number,
                    oldest.number - 1,
                    oldest.number
                ),
            )),
            _ => lineage.iter().map(|version| Subject::new(version.subject)).collect(),
        }
    }
}

/// One version in an event's lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The event's name.
    pub name: &'static str,
    /// The version's number.
    pub number: u32,
    /// Name and version.
    pub subject: &'static str,
    /// The oldest version that may still be received.
    pub since: u32,
}

/// The version number in the type `kind` of the event `name`, such as 1 for `orders.placed.v1`. `None` for other
/// events, and for a text that is not a version number: versions start at 1 and have no leading zeros.
pub(crate) fn version_of(kind: &str, name: &str) -> Option<u32> {
    let digits = kind.strip_prefix(name)?.strip_prefix(".v")?;
    let canonical = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    if canonical { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn only_canonical_numbers_are_versions() {
        for (kind, want) in [
            ("orders.placed.v1", Some(1)),
            ("orders.placed.v4294967295", Some(u32::MAX)),
            ("orders.placed.v4294967296", None),
            ("orders.placed.v0", None),
            ("orders.placed.v01", None),
            ("orders.placed.v", None),
            ("orders.placed.v+1", None),
            ("orders.placed.late.v1", None),
            ("orders.placed", None),
            ("orders.placedv1", None),
        ] {
            assert_eq!(version_of(kind, "orders.placed"), want, "{kind}");
        }
    }
}
