//! What is published: numbered steps along lanes. A lane is a key; its numbers have no gaps.

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

/// What handling a step is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// At once.
    Quick,
    /// Longer than the lease.
    Long,
    /// Always an error: ends as a dead letter.
    Poison,
}

/// How long a crashed worker keeps what it had fetched.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// How long a [`Kind::Long`] step is handled.
pub(crate) const LONG: Duration = Duration::from_secs(5);
/// Most steps that one worker handles at a time.
pub(crate) const CONCURRENCY: usize = 16;
/// Attempts before a step is given up. More than poison needs: what crashes take with them counts, too.
pub(crate) const ATTEMPTS: u32 = 8;

/// What the step of this number is: the same for publisher and checker.
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
