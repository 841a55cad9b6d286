//! The reader of a keyed group: on each topic one member is active, the others stand by.
//!
//! The active member holds a key with a lease. Every script that reads or assigns entries checks this key, so that a
//! member that was paused and lost it can do nothing. Entries are read under the consumer `~` and are assigned to the
//! member only when they are delivered: an entry that waits behind a busy key is assigned to no member, and no crash
//! counts as an attempt.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::blocking::Reader;
use super::codec::{self, args, parts};
use super::connection::RETRY;
use super::deliver::Deliverer;
use super::group::Place;
use super::keyed_topic::TopicReader;
use super::membership::Membership;
use super::pubsub::Listening;
use event_transport::bounds;
use event_transport::error::{ErrorKind, Result};
use event_transport::outage::Outage;
use event_transport::subscription::Health;
use event_transport::sync::lock;

pub(super) async fn run(
    deliverer: Deliverer,
    membership: Membership,
    places: Vec<Place>,
    listening: Vec<Listening>,
) {
    let mut keyed =
        Keyed { deliverer, membership, topics: Vec::new(), next_look: Instant::now(), reader: None };
    keyed.settle_in(places);
    let mut backoff = RETRY;
    let mut outage = Outage::default();
    while !keyed.deliverer.is_over() {
        let stepped = keyed.step().await;
        let Deliverer { member, feed, .. } = &keyed.deliverer;
        match stepped {
            Ok(true) => {
                outage.ends_for(&member.group, feed);
                backoff = RETRY;
            }
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                member.signals.changed();
                // A group that is being moved exists again in a moment.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => {
                outage.begins_for(&member.group, feed, &error.to_string());
                keyed.reader = None;
                tokio::select! {
                    () = backoff.pause() => {}
                    () = feed.stopped().cancelled() => {}
                    () = member.closed.cancelled() => {}
                }
            }
        }
    }
    let Deliverer { member, feed, .. } = keyed.deliverer;
    feed.report(Health::Stopped);
    member.ended.cancel();
    drop(feed);
    drop(listening);
}

struct Keyed {
    deliverer: Deliverer,
    membership: Membership,
    topics: Vec<TopicReader>,
    /// When to check for replays whose notification was missed.
    next_look: Instant,
    reader: Option<Reader>,
}

impl Keyed {
    fn settle_in(&mut self, places: Vec<Place>) {
        let member = &self.deliverer.member;
        member.joins(&places);
        let mut old = std::mem::take(&mut self.topics);
        self.topics = places
            .into_iter()
            .map(|place| {
                let same = |topic: &TopicReader| {
                    topic.place.name == place.name && topic.place.log.topic == place.log.topic
                };
                match old.iter().position(same).filter(|_| !place.lost) {
                    Some(at) => TopicReader { place, ..old.swap_remove(at) },
                    None => TopicReader::new(place),
                }
            })
            .collect();
        // A moved group starts without the old state.
        let kept: HashSet<_> = self
            .topics
            .iter()
            .filter(|topic| topic.active.is_some())
            .map(|topic| topic.place.log.topic.clone())
            .collect();
        lock(&member.keyed.owned).retain(|owned| kept.contains(&owned.topic));
    }

    /// Runs one round; `false` when the group was deleted.
    async fn step(&mut self) -> Result<bool> {
        let events = self.deliverer.member.signals.take();
        if events.changed || events.all {
            match self.membership.look_again(&self.deliverer.member).await? {
                Some(places) => self.settle_in(places),
                None => return Ok(false),
            }
        }
        let member = &self.deliverer.member;
        if events.owner || events.all {
            let now = Instant::now();
            self.topics.iter_mut().for_each(|topic| topic.next_try = now);
        }
        let look = Instant::now() >= self.next_look;
        if look {
            self.next_look =
                Instant::now() + (member.lease / 2).clamp(Duration::from_millis(200), Duration::from_secs(5));
        }
        for topic in &mut self.topics {
            let hinted = events.due.iter().any(|(hinted, _)| *hinted == topic.place.log.topic);
            if let Some(active) = &mut topic.active
                && (hinted || look || events.all)
            {
                active.maybe[1] = true;
                active.maybe[0] |= events.all;
            }
        }
        // A member that lost the ownership to another one starts again.
        let owned: HashSet<_> = lock(&member.keyed.owned).iter().map(|owned| owned.topic.clone()).collect();
        for topic in &mut self.topics {
            if topic.active.is_some() && !owned.contains(&topic.place.log.topic) {
                topic.active = None;
                topic.next_try = Instant::now();
            }
        }
        self.conclude();
        let mut busy = false;
        for topic in &mut self.topics {
            busy |= topic.step(&self.deliverer).await?;
        }
        if !busy {
            self.wait().await?;
        }
        Ok(true)
    }

    /// Processes the settlements since the last round.
    fn conclude(&mut self) {
        let settled = std::mem::take(&mut *lock(&self.deliverer.member.keyed.settled));
        for settled in settled {
            let active = self.topics.iter_mut().filter_map(|topic| topic.active.as_mut());
            if let Some(active) = active.into_iter().find(|active| active.backlog.has(settled.item)) {
                active.conclude(settled);
            }
        }
    }

    /// Waits for a new entry, a settlement, room, or the time of a retry.
    async fn wait(&mut self) -> Result<()> {
        let Deliverer { member, feed, .. } = &self.deliverer;
        let now = Instant::now();
        let mut until = now + Duration::from_secs(5);
        until = until.min(self.next_look);
        let mut reads = Vec::new();
        let mut full = false;
        for topic in &self.topics {
            match &topic.active {
                None => until = until.min(topic.next_try),
                Some(active) => {
                    until = active.backlog.next_due().map_or(until, |due| until.min(due));
                    if active.backlog.has_ready() {
                        full = true;
                    } else if active.backlog.has_space() {
                        reads.push((topic.place.log.stream.clone(), topic.last));
                    }
                }
            }
        }
        let block = until.saturating_duration_since(now).max(Duration::from_millis(1));
        if full || reads.is_empty() {
            tokio::select! {
                () = member.signals.wake.notified() => {}
                () = member.signals.room.notified() => {}
                slot = feed.slot(), if full && feed.free() == 0 => drop(slot),
                () = tokio::time::sleep(block) => {}
                () = feed.stopped().cancelled() => {}
                () = member.closed.cancelled() => {}
            }
            return Ok(());
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&member.client.connection).await?);
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(block);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(bounds::millis(block).max(1)).arg("STREAMS");
        args(&mut command, reads.iter().map(|(stream, _)| stream));
        args(&mut command, reads.iter().map(|(_, last)| *last));
        let answer = reader.wait(&command, block, &member.signals.wake).await?;
        for stream in parts(answer) {
            let key = parts(stream).into_iter().next().unwrap_or_default();
            for topic in &mut self.topics {
                if topic.place.log.stream == codec::text(&key)
                    && let Some(active) = &mut topic.active
                {
                    active.maybe[0] = true;
                }
            }
        }
        Ok(())
    }
}
