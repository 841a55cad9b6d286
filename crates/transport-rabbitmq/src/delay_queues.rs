//! Delay queues: one queue for each length of time; when the time has passed, dead-lettering moves the message on.
//!
//! A broker expires messages only at the head of a queue, so the times of one queue must be equal. Lengths are powers
//! of two. A copy waits in the longest queue that does not exceed its delay, with its due time in a header. A member
//! that receives it early holds it if it is nearly due, and sends it to another delay queue otherwise. So no delay is
//! cut short, a few queues serve all delays, and a delay is exact to milliseconds, except that a queue up to 1/16 too
//! long is used where that saves a step. A delay queue that was not used for a while deletes itself.
//!
//! A retry in a keyed group uses none: it waits in the member.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lapin::types::{FieldTable, ShortString};

use super::client::Client;
use super::codec::{self, Facts};
use super::declare::{arguments, number, word};
use super::registry::Registrar;
use super::republish::Republisher;
use event_transport::bounds;
use event_transport::error::{ErrorKind, Result};
use event_transport::message::Message;
use event_transport::subject::Group;
use event_transport::sync::lock;

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

/// The delay queues of one connection.
#[derive(Debug)]
pub(super) struct DelayQueues {
    client: Arc<Client>,
    registrar: Arc<Registrar>,
    republisher: Republisher,
    /// Delay queues that certainly exist, each with the time of its last declaration.
    declared: Mutex<HashMap<ShortString, Instant>>,
    /// Delay queues that the registry records, by group, one bit each.
    recorded: Mutex<HashMap<Group, u32>>,
}

impl DelayQueues {
    pub(super) fn new(client: Arc<Client>, registrar: Arc<Registrar>, republisher: Republisher) -> Self {
        Self { client, registrar, republisher, declared: Mutex::default(), recorded: Mutex::default() }
    }

    /// Stores a copy for this group only, which is not delivered before `after` has passed.
    pub(super) async fn copy_to_group(
        &self,
        group: &Group,
        message: &Message,
        mut facts: Facts,
        after: Duration,
    ) -> Result<()> {
        if !after.is_zero() {
            facts.due = Some(bounds::time_from_now(after));
        }
        self.deliver(Some(group), self.client.names.group(group), message, &facts).await
    }

    /// Stores a copy in `queue`, through a delay queue when it is not due yet.
    pub(super) async fn deliver(
        &self,
        group: Option<&Group>,
        queue: ShortString,
        message: &Message,
        facts: &Facts,
    ) -> Result<()> {
        let properties = codec::copy(message, facts, FieldTable::default())?;
        let Some(tier) = left(facts.due).and_then(tier) else {
            return self.republisher.to_queue(queue, properties, message.payload.clone()).await;
        };
        let length = length(tier);
        let room = match group {
            Some(group) => {
                self.record(group, tier).await?;
                self.client.names.retry(group, length)
            }
            None => self.client.names.delay(length),
        };
        for again in [true, false] {
            self.ensure(&room, length, &queue).await?;
            match self.republisher.to_queue(room.clone(), properties.clone(), message.payload.clone()).await {
                Err(error) if again && error.kind() == ErrorKind::NotFound => self.forget(&room),
                result => return result,
            }
        }
        unreachable!("the second try returns")
    }

    /// Records once that the group uses this delay queue, so that the administration of the group finds it.
    async fn record(&self, group: &Group, tier: u32) -> Result<()> {
        let known = |rooms: &u32| rooms & (1 << tier) != 0;
        if lock(&self.recorded).get(group).is_some_and(known) {
            return Ok(());
        }
        let (list, _) = self
            .registrar
            .change(|list| {
                let Some(record) = list.groups.get_mut(group.as_str()) else { return Ok(false) };
                let new = record.rooms & (1 << tier) == 0;
                record.rooms |= 1 << tier;
                Ok(new)
            })
            .await?;
        let rooms = list.groups.get(group.as_str()).map_or(0, |record| record.rooms);
        lock(&self.recorded).insert(group.clone(), rooms);
        Ok(())
    }

    /// Makes sure that the delay queue `room` exists; it moves its messages to the queue `to`.
    async fn ensure(&self, room: &ShortString, length: Duration, to: &ShortString) -> Result<()> {
        let known = lock(&self.declared).get(room).copied();
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
        self.client.declarer.declare(room.clone(), arguments).await?;
        if known.is_none() {
            self.client.declarer.settle_names().await;
        }
        lock(&self.declared).insert(room.clone(), Instant::now());
        Ok(())
    }

    /// Removes a delay queue that turned out to be missing.
    fn forget(&self, room: &ShortString) {
        lock(&self.declared).remove(room);
    }

    /// Deletes the delay queues of a group that was deleted; `used` has a bit for each of them.
    pub(super) async fn delete(&self, group: &Group, used: u32) -> Result<()> {
        for length in lengths(used) {
            let room = self.client.names.retry(group, length);
            self.forget(&room);
            self.client.declarer.delete(room).await?;
        }
        lock(&self.recorded).remove(group);
        Ok(())
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
