//! The reader of a group that is not keyed: reads new entries, due retries and entries that dead members left, in one
//! loop.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::blocking::Reader;
use super::codec::{self, Entry, EntryId, args, number, parts};
use super::connection::jitter;
use super::error::reply;
use super::group::{Joining, Place};
use super::member::{Holder, Member};
use super::pubsub::Listening;
use super::{scripts, unmatched};
use crate::bounds;
use crate::delivery::Settle;
use crate::error::{ErrorKind, Result};
use crate::subscription::{Feed, Health};
use crate::transport::Subscribe;

/// Maximum number of entries in one read.
const BATCH: usize = 500;

/// The state of one topic of the group.
pub(super) struct TopicCursor {
    pub(super) place: Place,
    /// When to take due retries and dead members' entries.
    next_take: Instant,
    /// Last entry received; `XREAD` waits from here when there is no room for one entry of each topic.
    last: EntryId,
    /// The topic may have new entries.
    maybe: bool,
}

pub(super) async fn run(
    member: Arc<Member>,
    spec: Subscribe,
    places: Vec<Place>,
    feed: Feed,
    listening: Vec<Listening>,
) {
    let mut fetcher = Fetcher {
        settle: Arc::new(Holder(member.clone())),
        topics: Vec::new(),
        turn: 0,
        reader: None,
        stale: Arc::new(Mutex::new(Some(Vec::new()))),
        member,
        spec,
        feed,
    };
    fetcher.settle_in(places);
    let mut pause = Duration::from_millis(20);
    let mut failing = false;
    while !fetcher.is_over() {
        match fetcher.step().await {
            Ok(true) => {
                if failing {
                    tracing::info!(group = %fetcher.member.group, "reading again");
                }
                failing = false;
                pause = Duration::from_millis(20);
                fetcher.feed.report(Health::Live);
            }
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => fetcher.member.signals.changed(),
            Err(error) => {
                if !failing {
                    tracing::warn!(group = %fetcher.member.group, %error, "reading failed; trying again");
                }
                failing = true;
                fetcher.feed.report(Health::Rebuilding(error.to_string()));
                fetcher.reader = None;
                tokio::select! {
                    () = tokio::time::sleep(jitter(pause)) => {}
                    () = fetcher.feed.stopped().cancelled() => {}
                    () = fetcher.member.closed.cancelled() => {}
                }
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
    let stale = fetcher.stale.lock().expect("not poisoned").take().unwrap_or_default();
    for misjudged in stale {
        unmatched::hand_back(&fetcher.member, misjudged);
    }
    let Fetcher { member, feed, .. } = fetcher;
    feed.report(Health::Stopped);
    member.ended.cancel();
    // No consumer will take the deliveries left in the queue; dropping the feed gives them back.
    drop(feed);
    drop(listening);
}

pub(super) struct Fetcher {
    pub(super) member: Arc<Member>,
    spec: Subscribe,
    pub(super) feed: Feed,
    pub(super) settle: Arc<dyn Settle>,
    pub(super) topics: Vec<TopicCursor>,
    /// The topic that is read first when there is no room for all.
    turn: usize,
    reader: Option<Reader>,
    /// Entries that were read under patterns that have changed since.
    pub(super) stale: unmatched::Stale,
}

impl Fetcher {
    pub(super) fn is_over(&self) -> bool {
        self.feed.stopped().is_cancelled()
            || self.member.closed.is_cancelled()
            || self.member.client.connection.closed.is_cancelled()
    }

    fn settle_in(&mut self, places: Vec<Place>) {
        let now = Instant::now();
        *self.member.joined.lock().expect("not poisoned") = places
            .iter()
            .flat_map(|place| {
                [(place.log.clone(), place.name.clone()), (place.replay.clone(), place.name.clone())]
            })
            .collect();
        let old = std::mem::take(&mut self.topics);
        self.topics = places
            .into_iter()
            .map(|place| {
                let last = old
                    .iter()
                    .find(|topic| topic.place.name == place.name && topic.place.log.topic == place.log.topic)
                    .map_or(place.delivered, |topic| topic.last);
                TopicCursor { place, next_take: now, last, maybe: true }
            })
            .collect();
    }

    /// Runs one round; `false` when the group was deleted.
    async fn step(&mut self) -> Result<bool> {
        let events = self.member.signals.take();
        if events.changed || events.all {
            let joining = Joining { consumer: &self.member.consumer, life: self.member.life_millis() };
            match self.member.client.look_again(&self.member.group, &self.spec, joining).await {
                Ok(Some(places)) => self.settle_in(places),
                Ok(None) => return Ok(false),
                Err(error) => {
                    self.member.signals.changed();
                    return Err(error);
                }
            }
            let stale =
                self.stale.lock().expect("not poisoned").as_mut().map(std::mem::take).unwrap_or_default();
            for (source, name, entries, asked) in stale {
                self.hand_out(&source, &name, entries, asked).await;
            }
        }
        for (topic, at) in events.due {
            for known in &mut self.topics {
                if known.place.log.topic == topic {
                    known.next_take = known.next_take.min(at);
                }
            }
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.member.client.connection).await?);
        }
        let Some(mut room) = self.room().await else { return Ok(true) };
        let now = Instant::now();
        for at in 0..self.topics.len() {
            if room > 0 && self.topics[at].next_take <= now {
                self.take(at, room).await?;
                room = self.member.room(self.feed.free());
            }
        }
        if room == 0 {
            return Ok(true);
        }
        self.read(room).await?;
        Ok(true)
    }

    /// Waits for room; `None` when the caller must check for signals or the end first.
    async fn room(&mut self) -> Option<usize> {
        loop {
            let room = self.member.room(self.feed.free());
            if self.is_over() {
                return None;
            }
            // Many small reads cost more than one large read: while deliveries are queued, it waits a moment for more
            // room.
            if room > 0 && (room * 2 >= self.member.max_in_flight || self.feed.untaken() == 0) {
                return Some(room);
            }
            tokio::select! {
                () = self.member.signals.room.notified() => {}
                // A settlement may be confirmed before its delivery frees its slot.
                slot = self.feed.slot(), if self.feed.free() == 0 => drop(slot),
                () = self.member.signals.wake.notified(), if room == 0 => {
                    // The signal may announce the end of the group, which must be handled even without room.
                    return None;
                }
                () = tokio::time::sleep(Duration::from_millis(1)), if room > 0 => return Some(room),
                () = self.feed.stopped().cancelled() => return None,
                () = self.member.closed.cancelled() => return None,
            }
        }
    }

    /// Takes due retries and entries that dead members left, of the log and of the replays.
    async fn take(&mut self, at: usize, room: usize) -> Result<()> {
        let place = self.topics[at].place.clone();
        let mut next = (self.member.lease / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        for (source, reads, share) in [(&place.log, 0, room), (&place.replay, 1, room)] {
            let room = share.min(self.member.room(self.feed.free())).min(BATCH);
            let mut command = scripts::TAKE.on(&[&source.stream, &source.due, &source.notes]);
            command.arg(&*place.name).arg(self.member.consumer.as_str()).arg(room);
            command.arg(bounds::millis(self.member.lease)).arg(reads);
            let asked = Instant::now();
            let mut answer = parts(self.member.client.connection.ask(command).await?).into_iter();
            if let Ok(wait) = u64::try_from(number(&answer.next().unwrap_or_default())) {
                next = next.min(Duration::from_millis(wait));
            }
            let taken = parts(answer.next().unwrap_or_default());
            if taken.len() == room {
                next = Duration::ZERO;
            }
            let entries = taken.into_iter().filter_map(|value| {
                let mut value = parts(value).into_iter();
                let id = codec::text(&value.next()?).parse().ok()?;
                let attempt = number(&value.next()?) as u32;
                Some((codec::read_fields(id, parts(value.next()?), &source.topic), attempt))
            });
            let entries = entries.collect();
            self.hand_out(source, &place.name, entries, asked).await;
        }
        self.topics[at].next_take = Instant::now() + next;
        Ok(())
    }

    /// Reads new entries; waits for them when there are none.
    async fn read(&mut self, room: usize) -> Result<()> {
        let now = Instant::now();
        let next = self.topics.iter().map(|topic| topic.next_take).min();
        let wanted = next.map_or(Duration::from_secs(5), |next| next.saturating_duration_since(now));
        let count = self.topics.len();
        if count == 0 {
            // The pattern is a wildcard and no topic exists yet.
            tokio::select! {
                () = self.member.signals.wake.notified() => {}
                () = self.feed.stopped().cancelled() => {}
                () = self.member.closed.cancelled() => {}
            }
            return Ok(());
        }
        if room >= count {
            return self.read_all(room / count, wanted).await;
        }
        // There is no room for one entry of each topic: reads one topic after another, with all the room there is.
        for step in 0..count {
            let at = (self.turn + step) % count;
            if self.topics[at].maybe {
                self.turn = (at + 1) % count;
                return self.read_one(at, room).await;
            }
        }
        self.wait_for_any(wanted).await
    }

    fn command(&self, most: usize, block: Option<Duration>) -> redis::Cmd {
        let mut command = redis::cmd("XREADGROUP");
        let name = |topic: &TopicCursor| topic.place.name.clone();
        command.arg("GROUP").arg(self.topics.first().map(name).as_deref().unwrap_or_default());
        command.arg(self.member.consumer.as_str()).arg("COUNT").arg(most.min(BATCH));
        if let Some(block) = block {
            command.arg("BLOCK").arg(bounds::millis(block).max(1));
        }
        command.arg("STREAMS");
        command
    }

    async fn read_all(&mut self, each: usize, wanted: Duration) -> Result<()> {
        // A group that is being moved has different names on its topics for a moment.
        let name = self.topics[0].place.name.clone();
        if self.topics.iter().any(|topic| topic.place.name != name) {
            return self.read_in_turn(each).await;
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(wanted);
        let mut command = self.command(each, Some(block));
        args(&mut command, self.topics.iter().map(|topic| &topic.place.log.stream));
        args(&mut command, self.topics.iter().map(|_| ">"));
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let answer = tokio::select! {
            answer = reader.wait(&command, block, &self.member.signals.wake) => answer?,
        };
        // The server may have taken the entries at any time during the block; they count from the reply, which cannot
        // be older than a moment.
        let asked = Instant::now();
        for stream in parts(answer) {
            let mut stream = parts(stream).into_iter();
            let key = stream.next().unwrap_or_default();
            let Some(at) = self.topics.iter().position(|topic| topic.place.log.stream == codec::text(&key))
            else {
                continue;
            };
            let entries = parts(stream.next().unwrap_or_default());
            self.received(at, entries, asked).await;
        }
        Ok(())
    }

    /// Reads topics on which the group has different names in Redis: one after another, without blocking.
    async fn read_in_turn(&mut self, each: usize) -> Result<()> {
        for at in 0..self.topics.len() {
            self.read_one(at, each).await?;
        }
        if self.topics.iter().any(|topic| topic.maybe) {
            return Ok(());
        }
        let next = self.topics.iter().map(|topic| topic.next_take).min();
        let wanted =
            next.map_or(Duration::from_secs(5), |next| next.saturating_duration_since(Instant::now()));
        self.wait_for_any(wanted).await
    }

    async fn read_one(&mut self, at: usize, room: usize) -> Result<()> {
        let topic = &self.topics[at];
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&*topic.place.name).arg(self.member.consumer.as_str());
        command.arg("COUNT").arg(room.min(BATCH)).arg("STREAMS").arg(&topic.place.log.stream).arg(">");
        let asked = Instant::now();
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let answer = reader.ask(&command).await?;
        let entries = parts(answer)
            .into_iter()
            .next()
            .and_then(|stream| parts(stream).into_iter().nth(1))
            .map(parts)
            .unwrap_or_default();
        self.topics[at].maybe = entries.len() == room.min(BATCH);
        self.received(at, entries, asked).await;
        Ok(())
    }

    /// Waits for new entries without taking them: another member may take them first.
    async fn wait_for_any(&mut self, wanted: Duration) -> Result<()> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(wanted);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(bounds::millis(block).max(1)).arg("STREAMS");
        args(&mut command, self.topics.iter().map(|topic| &topic.place.log.stream));
        args(&mut command, self.topics.iter().map(|topic| topic.last));
        let answer = reader.wait(&command, block, &self.member.signals.wake).await?;
        for stream in parts(answer) {
            let mut stream = parts(stream).into_iter();
            let key = stream.next().unwrap_or_default();
            let last = parts(stream.next().unwrap_or_default()).pop().map(parts).unwrap_or_default();
            let id = last.first().and_then(|id| codec::text(id).parse().ok());
            for topic in &mut self.topics {
                if topic.place.log.stream == codec::text(&key) {
                    topic.maybe = true;
                    topic.last = id.unwrap_or(topic.last).max(topic.last);
                }
            }
        }
        Ok(())
    }

    async fn received(&mut self, at: usize, entries: Vec<Value>, asked: Instant) {
        let place = &self.topics[at].place;
        let (source, name) = (place.log.clone(), place.name.clone());
        let entries: Vec<(Entry, u32)> =
            entries.into_iter().filter_map(|value| Some((codec::read(value, &source.topic)?, 1))).collect();
        if let Some((last, _)) = entries.last() {
            self.topics[at].last = self.topics[at].last.max(last.id);
        }
        self.hand_out(&source, &name, entries, asked).await;
        // Lets the consumer run first: another read now would wake a second thread, and the consumer would have to wait
        // for it.
        tokio::task::yield_now().await;
    }
}

/// Runs commands whose replies matter only when they are errors.
pub(super) async fn run_all(member: &Member, pipeline: &Pipeline) -> Result<()> {
    for value in member.client.connection.run(pipeline).await? {
        reply(value)?;
    }
    Ok(())
}
