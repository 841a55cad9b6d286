//! The reader of a group that is not keyed: reads new entries, due retries and entries that dead members left, in one
//! loop.

use std::time::Duration;

use super::blocking::Reader;
use super::claim;
use super::connection::RETRY;
use super::cursor::TopicCursor;
use super::deliver::Deliverer;
use super::group::Place;
use super::membership::Membership;
use super::new_entries::NewEntries;
use super::pubsub::Listening;
use super::receive::Receiver;
use event_transport::error::{ErrorKind, Result};
use event_transport::outage::Outage;
use event_transport::subscription::Health;

pub(super) async fn run(
    deliverer: Deliverer,
    membership: Membership,
    places: Vec<Place>,
    listening: Vec<Listening>,
) {
    let receiver = Receiver::new(deliverer);
    let mut fetcher = Fetcher { receiver, membership, topics: Vec::new(), entries: None };
    fetcher.settle_in(places);
    let mut backoff = RETRY;
    let mut outage = Outage::default();
    while !fetcher.receiver.deliverer.is_over() {
        let stepped = fetcher.step().await;
        let Deliverer { member, feed, .. } = &fetcher.receiver.deliverer;
        match stepped {
            Ok(true) => {
                outage.ends_for(&member.group, feed);
                backoff = RETRY;
            }
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => member.signals.changed(),
            Err(error) => {
                outage.begins_for(&member.group, feed, &error.to_string());
                fetcher.entries = None;
                tokio::select! {
                    () = backoff.pause() => {}
                    () = feed.stopped().cancelled() => {}
                    () = member.closed.cancelled() => {}
                }
            }
        }
    }
    let Fetcher { receiver, .. } = fetcher;
    receiver.end();
    let Deliverer { member, feed, .. } = receiver.deliverer;
    feed.report(Health::Stopped);
    member.ended.cancel();
    // No consumer will take the deliveries left in the queue; dropping the feed gives them back.
    drop(feed);
    drop(listening);
}

struct Fetcher {
    receiver: Receiver,
    membership: Membership,
    topics: Vec<TopicCursor>,
    /// `None` while there is no connection to read over.
    entries: Option<NewEntries>,
}

impl Fetcher {
    fn settle_in(&mut self, places: Vec<Place>) {
        self.receiver.deliverer.member.joins(&places);
        self.topics = TopicCursor::all(places, &self.topics);
    }

    /// Runs one round; `false` when the group was deleted.
    async fn step(&mut self) -> Result<bool> {
        let events = self.receiver.deliverer.member.signals.take();
        if events.changed || events.all {
            match self.membership.look_again(&self.receiver.deliverer.member).await? {
                Some(places) => self.settle_in(places),
                None => return Ok(false),
            }
            for (source, name, entries, asked) in self.receiver.take_stale() {
                let topic = self.topics.iter().find(|topic| topic.place.log.topic == source.topic);
                if let Some(topic) = topic {
                    self.receiver.hand_out(&topic.place, &source, &name, entries, asked);
                }
            }
        }
        for (topic, at) in events.due {
            for known in self.topics.iter_mut().filter(|known| known.place.log.topic == topic) {
                known.next_look = known.next_look.min(at);
                known.busy = true;
            }
        }
        if self.entries.is_none() {
            let reader = Reader::open(&self.receiver.deliverer.member.client.connection).await?;
            self.entries = Some(NewEntries::new(reader));
        }
        if !self.has_room().await {
            return Ok(true);
        }
        claim::look(&self.receiver, &mut self.topics).await?;
        let room = self.receiver.deliverer.room();
        if room == 0 {
            return Ok(true);
        }
        if self.topics.is_empty() {
            // The pattern is a wildcard and no topic exists yet.
            let Deliverer { member, feed, .. } = &self.receiver.deliverer;
            tokio::select! {
                () = member.signals.wake.notified() => {}
                () = feed.stopped().cancelled() => {}
                () = member.closed.cancelled() => {}
            }
        } else if let Some(entries) = &mut self.entries {
            entries.read(&self.receiver, &mut self.topics, room).await?;
        }
        Ok(true)
    }

    /// Waits for room; `false` when the caller must check for signals or the end first.
    async fn has_room(&self) -> bool {
        let room = self.wait_for_room().await;
        self.receiver.deliverer.member.signals.want_room_at(usize::MAX);
        room
    }

    async fn wait_for_room(&self) -> bool {
        let deliverer = &self.receiver.deliverer;
        let Deliverer { member, feed, .. } = deliverer;
        let mut limited = false;
        loop {
            let (unsettled, untaken) = (member.unsettled(), feed.untaken());
            let room = deliverer.room();
            if deliverer.is_over() {
                return false;
            }
            // Many small reads cost more than one large read: while deliveries are queued, it waits a moment for more
            // room.
            if room > 0 && (room * 2 >= member.max_in_flight || untaken == 0) {
                return true;
            }
            if room > 0 {
                // Woken when there is much room, or when the queue can be empty.
                let queued = unsettled.saturating_sub(untaken.max(1));
                member.signals.want_room_at(queued.max(member.max_in_flight / 2));
                limited = true;
            } else if std::mem::take(&mut limited) {
                // From here on each settlement counts, also those since the look above.
                member.signals.want_room_at(usize::MAX);
                continue;
            }
            tokio::select! {
                () = member.signals.room.notified() => {}
                // A settlement may be confirmed before its delivery frees its slot.
                slot = feed.slot(), if feed.free() == 0 => drop(slot),
                () = member.signals.wake.notified(), if room == 0 => {
                    // The signal may announce the end of the group, which must be handled even without room.
                    return false;
                }
                // While settlements keep coming, more room is about to come.
                () = tokio::time::sleep(Duration::from_millis(1)), if room > 0 => {
                    if member.unsettled() == unsettled {
                        return true;
                    }
                }
                () = feed.stopped().cancelled() => return false,
                () = member.closed.cancelled() => return false,
            }
        }
    }
}
