//! An event type: its name, version, key and schema, and how older versions become it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Subject;

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

/// The version at the end of a type such as `orders.placed.v1`.
pub(crate) fn version_of(kind: &str) -> Option<u32> {
    kind.rsplit_once(".v")?.1.parse().ok()
}
