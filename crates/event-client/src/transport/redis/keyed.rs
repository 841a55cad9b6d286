//! The reader of a keyed group: on each topic one member is active, the others stand by.
//!
//! The active member holds a key with a lease. Every script that reads or assigns entries checks this key, so that a
//! member that was paused and lost it can do nothing. Entries are read under the consumer `~` and are assigned to the
//! member only when they are delivered: an entry that waits behind a busy key is assigned to no member, and no crash
//! counts as an attempt.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::backlog::Backlog;
use super::blocking::Reader;
use super::codec::{self, EntryId, args, number, parts};
use super::connection::jitter;
use super::group::{Joining, Place};
use super::member::{Holder, How, Member, Settled};
use super::pubsub::Listening;
use super::scripts;
use crate::bounds;
use crate::delivery::Settle;
use crate::error::{ErrorKind, Result};
use crate::subscription::{Feed, Health};
use crate::transport::Subscribe;

/// Number of entries in one page of those that waited before.
const PAGE: usize = 200;

pub(super) struct TopicReader {
    pub(super) place: Place,
    /// `None` while another member is active.
    pub(super) active: Option<Active>,
    /// When to try again to become the active member.
    pub(super) next_try: Instant,
    /// Last entry received.
    last: EntryId,
}

/// The active member's state.
pub(super) struct Active {
    pub(super) backlog: Backlog,
    /// Ids after which earlier entries are still to be read, page by page, before new ones: of the log, of the replays.
    pub(super) loading: [Option<EntryId>; 2],
    /// The last entry that was read: of the log, of the replays.
    pub(super) seen: [EntryId; 2],
    /// Entries that were read, are not wanted, and are not yet acknowledged.
    pub(super) unwanted: Vec<EntryId>,
    /// There may be new entries: in the log, in the replays.
    pub(super) maybe: [bool; 2],
    /// Settlements whose outcome is unknown.
    pub(super) unsure: Vec<u64>,
}

pub(super) async fn run(
    member: Arc<Member>,
    spec: Subscribe,
    places: Vec<Place>,
    feed: Feed,
    listening: Vec<Listening>,
) {
    let mut keyed = Keyed {
        settle: Arc::new(Holder(member.clone())),
        topics: Vec::new(),
        next_item: 0,
        next_look: Instant::now(),
        reader: None,
        member,
        spec,
        feed,
    };
    keyed.settle_in(places);
    let mut pause = Duration::from_millis(20);
    let mut failing = false;
    while !keyed.is_over() {
        match keyed.step().await {
            Ok(true) => {
                if failing {
                    tracing::info!(group = %keyed.member.group, "reading again");
                }
                failing = false;
                pause = Duration::from_millis(20);
                keyed.feed.report(Health::Live);
            }
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                keyed.member.signals.changed();
                // A group that is being moved exists again in a moment.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(group = %keyed.member.group, %error, "reading failed; trying again");
                }
                failing = true;
                keyed.feed.report(Health::Rebuilding(error.to_string()));
                keyed.reader = None;
                tokio::select! {
                    () = tokio::time::sleep(jitter(pause)) => {}
                    () = keyed.feed.stopped().cancelled() => {}
                    () = keyed.member.closed.cancelled() => {}
                }
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
    let Keyed { member, feed, .. } = keyed;
    feed.report(Health::Stopped);
    member.ended.cancel();
    drop(feed);
    drop(listening);
}

pub(super) struct Keyed {
    pub(super) member: Arc<Member>,
    spec: Subscribe,
    pub(super) feed: Feed,
    pub(super) settle: Arc<dyn Settle>,
    pub(super) topics: Vec<TopicReader>,
    pub(super) next_item: u64,
    /// When to check for replays whose notification was missed.
    next_look: Instant,
    reader: Option<Reader>,
}

impl Keyed {
    pub(super) fn is_over(&self) -> bool {
        self.feed.stopped().is_cancelled()
            || self.member.closed.is_cancelled()
            || self.member.client.connection.closed.is_cancelled()
    }

    fn settle_in(&mut self, places: Vec<Place>) {
        *self.member.joined.lock().expect("not poisoned") = places
            .iter()
            .flat_map(|place| {
                [(place.log.clone(), place.name.clone()), (place.replay.clone(), place.name.clone())]
            })
            .collect();
        let mut old = std::mem::take(&mut self.topics);
        let now = Instant::now();
        self.topics = places
            .into_iter()
            .map(|place| {
                let same = |topic: &TopicReader| {
                    topic.place.name == place.name && topic.place.log.topic == place.log.topic
                };
                match old.iter().position(same).filter(|_| !place.lost) {
                    Some(at) => TopicReader { place, ..old.swap_remove(at) },
                    None => TopicReader { active: None, next_try: now, last: place.delivered, place },
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
        self.member.owned.lock().expect("not poisoned").retain(|owned| kept.contains(&owned.topic));
    }

    async fn look_again(&mut self) -> Result<bool> {
        let joining = Joining { consumer: &self.member.consumer, life: self.member.life_millis() };
        match self.member.client.look_again(&self.member.group, &self.spec, joining).await {
            Ok(Some(places)) => {
                self.settle_in(places);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.member.signals.changed();
                Err(error)
            }
        }
    }

    /// Runs one round; `false` when the group was deleted.
    async fn step(&mut self) -> Result<bool> {
        let events = self.member.signals.take();
        if (events.changed || events.all) && !self.look_again().await? {
            return Ok(false);
        }
        if events.owner || events.all {
            let now = Instant::now();
            self.topics.iter_mut().for_each(|topic| topic.next_try = now);
        }
        let look = Instant::now() >= self.next_look;
        if look {
            self.next_look = Instant::now()
                + (self.member.lease / 2).clamp(Duration::from_millis(200), Duration::from_secs(5));
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
        let owned: HashSet<_> =
            self.member.owned.lock().expect("not poisoned").iter().map(|owned| owned.topic.clone()).collect();
        for topic in &mut self.topics {
            if topic.active.is_some() && !owned.contains(&topic.place.log.topic) {
                topic.active = None;
                topic.next_try = Instant::now();
            }
        }
        self.conclude();
        let mut busy = false;
        for at in 0..self.topics.len() {
            if self.topics[at].active.is_none() && self.topics[at].next_try <= Instant::now() {
                self.acquire(at).await?;
            }
            busy |= self.resolve(at).await?;
            busy |= self.fill(at).await?;
            busy |= self.hand_out(at).await?;
        }
        if !busy {
            self.wait().await?;
        }
        Ok(true)
    }

    /// Processes the settlements since the last round.
    fn conclude(&mut self) {
        let settled = std::mem::take(&mut *self.member.lanes.lock().expect("not poisoned"));
        for Settled { item, how } in settled {
            let active = self.topics.iter_mut().filter_map(|topic| topic.active.as_mut());
            let Some(active) = active.into_iter().find(|active| active.backlog.has(item)) else { continue };
            match how {
                How::Done => active.backlog.finish(item),
                How::Again(after, made) => {
                    let at = (!after.is_zero()).then(|| bounds::from_now(after));
                    active.backlog.again(item, made, at);
                }
                How::Lost => active.unsure.push(item),
            }
        }
    }

    /// Reads the entries that waited before, then new ones.
    async fn fill(&mut self, at: usize) -> Result<bool> {
        for replay in [false, true] {
            let which = usize::from(replay);
            let Some(active) = &self.topics[at].active else { return Ok(false) };
            if active.backlog.has_ready() || !active.backlog.has_space() {
                return Ok(false);
            }
            let loading = active.loading[which];
            // Earlier entries of the log come before those of the replays, and both before new entries.
            let blocked = replay && active.loading[0].is_some();
            if blocked || (loading.is_none() && !active.maybe[which]) {
                continue;
            }
            if loading.is_none() && active.loading.iter().any(Option::is_some) {
                continue;
            }
            return self.read(at, replay, loading).await;
        }
        Ok(false)
    }

    async fn read(&mut self, at: usize, replay: bool, loading: Option<EntryId>) -> Result<bool> {
        let member = self.member.clone();
        let which = usize::from(replay);
        let place = self.topics[at].place.clone();
        let source = if replay { &place.replay } else { &place.log };
        let most = if loading.is_some() { PAGE } else { (member.max_in_flight * 2).clamp(16, 500) };
        let owner = member.client.keys.owner(&source.topic, member.group.as_str());
        let mut command = scripts::FETCH.on(&[&source.stream, &source.due, &owner]);
        command.arg(&*place.name).arg(member.consumer.as_str()).arg(most);
        command.arg(loading.map(|after| after.to_string()).unwrap_or_default());
        let answer = match member.client.connection.ask(command).await {
            Ok(Value::Array(answer)) => answer,
            Ok(_) => {
                self.lose(at);
                return Ok(true);
            }
            Err(error) => {
                // The server may have read entries all the same: no later entry may overtake them.
                if let Some(active) = &mut self.topics[at].active {
                    active.loading[which].get_or_insert(active.seen[which]);
                }
                return Err(error);
            }
        };
        let count = answer.len();
        let now = Instant::now();
        let mut last = loading.unwrap_or_default();
        let mut read = Vec::new();
        for value in answer {
            let mut value = parts(value).into_iter();
            let Some(Ok(id)) = value.next().map(|id| codec::text(&id).parse::<EntryId>()) else { continue };
            last = last.max(id);
            let made = value.next().map_or(0, |made| number(&made)) as u32;
            let wait = value.next().map_or(-1, |wait| number(&wait));
            let not_before = u64::try_from(wait).ok().filter(|wait| *wait > 0);
            let not_before = not_before.map(|wait| bounds::later(now, Duration::from_millis(wait)));
            if let Some(Value::Array(fields)) = value.next() {
                read.push((codec::read_fields(id, fields, &source.topic), made, not_before));
            }
        }
        let Some(active) = &mut self.topics[at].active else { return Ok(true) };
        active.seen[which] = active.seen[which].max(last);
        match loading {
            Some(_) => active.loading[which] = (count == most).then_some(last),
            None => active.maybe[which] = count == most,
        }
        if !replay && loading.is_none() {
            self.topics[at].last = self.topics[at].last.max(last);
        }
        self.take_in(at, source, read).await?;
        Ok(count > 0)
    }

    /// Waits for a new entry, a settlement, room, or the time of a retry.
    async fn wait(&mut self) -> Result<()> {
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
                () = self.member.signals.wake.notified() => {}
                () = self.member.signals.room.notified() => {}
                slot = self.feed.slot(), if full && self.feed.free() == 0 => drop(slot),
                () = tokio::time::sleep(block) => {}
                () = self.feed.stopped().cancelled() => {}
                () = self.member.closed.cancelled() => {}
            }
            return Ok(());
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.member.client.connection).await?);
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(block);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(bounds::millis(block).max(1)).arg("STREAMS");
        args(&mut command, reads.iter().map(|(stream, _)| stream));
        args(&mut command, reads.iter().map(|(_, last)| *last));
        let answer = reader.wait(&command, block, &self.member.signals.wake).await?;
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
