//! The published events: numbered steps along lanes. A lane is a key; its numbers have no gaps.

use event_client::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One step of a lane.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Event)]
#[event(name = "torture.step", version = 1, key = lane)]
pub(crate) struct Step {
    pub(crate) lane: String,
    pub(crate) number: u64,
    pub(crate) kind: Kind,
}

/// How a step is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The handler succeeds at once.
    Quick,
    /// The handler succeeds after a time that is longer than the lease.
    Long,
    /// The handler always fails: the step ends as a dead letter.
    Poison,
}

/// How long a crashed worker keeps the messages that it had fetched.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// How long a [`Kind::Long`] step is handled.
pub(crate) const LONG: Duration = Duration::from_secs(5);
/// The maximum number of steps that one worker handles at a time.
pub(crate) const CONCURRENCY: usize = 16;
/// The number of attempts before a step becomes a dead letter. More than poison needs, because crashes count
/// as attempts, too.
pub(crate) const ATTEMPTS: u32 = 8;

/// Returns the kind of the step with this number, which is the same for publisher and checker.
pub(crate) fn kind(seed: u64, lane: &str, number: u64) -> Kind {
    let mut mixed = seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for byte in lane.bytes() {
        mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    match fastrand::Rng::with_seed(mixed).u32(..1000) {
        0..5 => Kind::Poison,
        5..7 => Kind::Long,
        _ => Kind::Quick,
    }
}
