//! An event type: its name, version, key and schema, and how older versions become it.
//!
//! # Deploying a new version
//!
//! A change that old readers cannot follow is a new version: a new type with `version = 2` and
//! `upcast_from = OrderPlacedV1`. Publishers and consumers may be deployed in any order, and old and new members of a
//! group run side by side:
//!
//! - A handler of `Msg<T>` or `Batch<T>` subscribes its group to every version of its event,
//!   [`orders.placed.*`](Event::pattern). Members that know different versions therefore ask for the same, and a member
//!   that restarts changes nothing. A group made by a build that subscribed single versions is widened by the first
//!   member of this build; a member of such a build that starts again narrows it until the next member of this build
//!   starts, so replace those builds before the first version 2 is published. With `provision=verify` run
//!   `backbone topology apply` with this build's topology first.
//! - A member that gets a version it does not know [hands it back](crate::delivery::Settlement::Defer): the attempt is not
//!   counted, other messages go on, and it is delivered again, to whichever member takes it, after a pause that grows
//!   from 0.1 s to a minute. A keyed group keeps the later messages of that key behind it; other keys go on. Where one
//!   member of a keyed group works and the others stand by, the working member leaves the group for two seconds, so that
//!   another takes over; it does so when other members stand, again when their number has changed, and else ever more
//!   rarely, at least every half hour.
//! - When no member knew the version for [`Handler::await_version`](crate::service::Handler::await_version), 24 h unless
//!   said, the event becomes a dead letter with the reason `unknown-version`, from where it can be replayed once a member
//!   knows it. The time counts from when the store took the event (its CloudEvents `time` where the store does not tell),
//!   or from when the member that judges began to meet that version, if that was later: a group that stood still for
//!   days gives up nothing the moment it comes back. A member begins anew when it restarts, and when it has not met the
//!   version for twelve hours; for replayed letters it begins when it first meets one.
//! - The log says which version a member hands back and since when, once a minute at most;
//!   `event_client_unknown_version_total` counts them.
//!
//! So the consumer first is the quickest order, the publisher first delays the new events until a consumer knows them, and
//! a roll-back of the consumer delays them until it is rolled forward. A version below `since` is treated the same. What is
//! no version of the event, such as another type under its subject, is a dead letter `unknown-type` at once. Handlers of
//! `Dynamic` and `Raw` take every version that their pattern matches; a broadcast handler passes over what it does not
//! know.
//!
//! What waits is bounded by what the transport may hold unsettled: `max_unsettled` of a group on NATS and 1024 messages if
//! it is keyed, 10,000 messages of a keyed group and topic on Redis, `keyed_backlog` on RabbitMQ. Beyond that the group
//! waits as a whole.

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::{Pattern, Subject};

pub use schemars::{JsonSchema, Schema};

/// A fact that services publish and consume. Implemented by `#[derive(Event)]`.
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
    /// Stable name: topic and what happened, in the past tense: `orders.placed`.
    const NAME: &'static str;
    /// Major version, from 1. A change that old readers cannot follow is a new version.
    const VERSION: u32;
    /// Name and version: `orders.placed.v1`. The subject, and the CloudEvents type.
    const SUBJECT: &'static str;

    /// Events of one topic with the same key stay in order for keyed handlers.
    fn key(&self) -> Option<SmolStr> {
        None
    }

    /// This version and the older ones that it is made from, newest first.
    fn lineage() -> Vec<Version>;

    /// Decodes data of any version in the lineage.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownType`] for a version outside the lineage, [`ErrorKind::Decode`] for bytes that do not fit.
    fn decode(version: u32, envelope: &Envelope) -> Result<Self>;

    /// The JSON Schema of the data.
    fn schema() -> Schema {
        schemars::schema_for!(Self)
    }

    /// Every version of this event, those to come included: `orders.placed.*`. What a handler's group receives.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    fn pattern() -> Result<Pattern> {
        Pattern::new(format!("{}.*", Self::NAME))
    }

    /// The subjects that carry this event in any version that can be read.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the chain of upcasters has a gap or changes its name; [`ErrorKind::InvalidName`].
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
                    "`{}` starts at v{} with no way to read v{}; add `upcast_from`, or `since = {}` if older ones are gone",
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
    /// The oldest version that may still be met.
    pub since: u32,
}

/// The version of the event `name` that `kind` says, such as 1 for `orders.placed.v1`; `None` for other events, and for
/// what is no version: those count from 1 and are written without leading zeros.
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
