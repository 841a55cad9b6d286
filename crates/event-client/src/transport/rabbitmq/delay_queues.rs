//! Delay queues: one queue for each length of time; when the time has passed, dead-lettering moves the message on.
//!
//! A broker expires messages only at the head of a queue, so the times of one queue must be equal. Lengths are powers
//! of two. A copy waits in the longest queue that does not exceed its delay, with its due time in a header. A member
//! that receives it early holds it if it is nearly due, and sends it to another delay queue otherwise. So no delay is
//! cut short, a few queues serve all delays, and a delay is exact to milliseconds, except that a queue up to 1/16 too
//! long is used where that saves a step. A delay queue that was not used for a while deletes itself.
//!
//! `settle.rs` chooses the queue of a retry. A retry in a keyed group uses none: it waits in the member.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lapin::types::ShortString;

use super::declare::{Declarer, arguments, number, word};
use super::names::Names;
use crate::bounds;
use crate::error::Result;

const FIRST: u32 = 5;
const LAST: u32 = 30;
/// The broker deletes a delay queue after this time and twice its length without use.
const SPARE: Duration = Duration::from_secs(3600);
/// A delay queue is declared again before use when the last declaration is older than this; far below [`SPARE`].
const FRESH: Duration = Duration::from_secs(600);

/// The number of the delay queue for `delay`; `None` when `delay` is too short for any.
pub(super) fn tier(delay: Duration) -> Option<u32> {
    let millis = bounds::millis(delay);
    if millis < 1 << FIRST {
        return None;
    }
    let below = millis.ilog2();
    // Rounded up where the difference is small, to save a step.
    let above = 1_u64 << (below + 1).min(63);
    let tier = if above - millis <= millis / 16 { below + 1 } else { below };
    Some(tier.min(LAST))
}

/// How long a message waits in a delay queue.
pub(super) fn length(tier: u32) -> Duration {
    Duration::from_millis(1 << tier)
}

/// The lengths of the delay queues whose bits are set.
pub(super) fn lengths(used: u32) -> impl Iterator<Item = Duration> {
    (FIRST..=LAST).filter(move |tier| used & (1 << tier) != 0).map(length)
}

/// The time until `due`; `None` when it has passed.
pub(super) fn left(due: Option<Timestamp>) -> Option<Duration> {
    Some(bounds::left_until(due?)).filter(|left| !left.is_zero())
}

/// Delay queues that certainly exist, each with the time of its last declaration.
#[derive(Debug, Default)]
pub(super) struct DelayQueues(Mutex<HashMap<ShortString, Instant>>);

impl DelayQueues {
    /// Makes sure that the delay queue `room` exists; it moves its messages to the queue `to`.
    pub(super) async fn ensure(
        &self,
        declarer: &Declarer,
        names: &Names,
        room: &ShortString,
        length: Duration,
        to: &ShortString,
    ) -> Result<()> {
        let known = self.0.lock().expect("not poisoned").get(room).copied();
        if known.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        let millis = bounds::millis(length);
        let spare = bounds::millis(SPARE);
        let arguments = arguments([
            ("x-queue-type", word("quorum")),
            ("x-message-ttl", number(millis)),
            ("x-expires", number(millis * 2 + spare)),
            ("x-overflow", word("reject-publish")),
            ("x-dead-letter-strategy", word("at-least-once")),
            ("x-dead-letter-exchange", word("")),
            ("x-dead-letter-routing-key", word(to.as_str())),
        ]);
        declarer.declare(room.clone(), arguments).await?;
        if known.is_none() {
            declarer.settle_names(names).await;
        }
        self.0.lock().expect("not poisoned").insert(room.clone(), Instant::now());
        Ok(())
    }

    /// Removes a delay queue that turned out to be missing.
    pub(super) fn forget(&self, room: &ShortString) {
        self.0.lock().expect("not poisoned").remove(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rooms_are_the_longest_that_fit_or_a_little_longer() {
        for (millis, want) in
            [(0, None), (31, None), (32, Some(32)), (62, Some(64)), (200, Some(128)), (700, Some(512))]
        {
            let room = tier(Duration::from_millis(millis)).map(|tier| length(tier).as_millis());
            assert_eq!(room, want, "{millis}");
        }
        assert_eq!(lengths(1 << 5 | 1 << 30).count(), 2);
    }

    proptest! {
        #[test]
        fn every_delay_ends_in_a_few_trips(millis in 0_u64..86_400_000 * 30) {
            let mut left = millis;
            let mut trips = 0;
            while let Some(tier) = tier(Duration::from_millis(left)) {
                let room = u64::try_from(length(tier).as_millis()).unwrap();
                prop_assert!(room <= left + left / 16 + 1);
                left = left.saturating_sub(room);
                trips += 1;
            }
            prop_assert!(trips <= 32, "{trips}");
        }
    }
}
