//! The stored attempts of messages that a group's consumer has delivered before.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::names::Names;
use super::source::Source;

/// The stored attempts of a message that is delivered again: the server's delivery count does not exclude releases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// Delivery count when this was written.
    pub(super) delivered: u64,
    /// Number of these deliveries that count as attempts.
    pub(super) attempts: u32,
    /// Unix milliseconds of the next attempt; 0 means at once.
    #[serde(default)]
    pub(super) due: i64,
    /// Unix milliseconds of the first attempt.
    #[serde(default)]
    pub(super) first: i64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) error: SmolStr,
}

/// Returns the subject of a message's stored attempts.
pub(super) fn subject(names: &Names, source: &Source, sequence: u64) -> String {
    format!("{}{sequence}", prefix(names, source))
}

/// Returns the prefix of the subjects of the stored attempts of a consumer's messages.
pub(super) fn prefix(names: &Names, source: &Source) -> String {
    names.record("attempt", &format!("{}.{}.", source.consumer, source.stream))
}
