//! Reading for a keyed group: on each topic one member is active, the others stand by.
//!
//! The active member holds a key with a lease; every script that reads or hands out checks it, so that a member that
//! was paused and lost it can do nothing. Entries are read under the consumer `~` and become the member's own only
//! when they are handed out: what waits behind a busy key is in nobody's hand, and no crash counts against it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::codec::{self, Entry, EntryId, args, number, parts};
use super::ear::Listening;
use super::error::reply;
use super::group::{Joining, Place};
use super::keys::Source;
use super::link::jitter;
use super::member::{Held, Holder, How, Member, Owned, Settled};
use super::reader::Reader;
use super::turns::Turns;
use super::{scripts, skip};
use crate::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settle, Settlement};
use crate::error::{ErrorKind, Result};
use crate::subscription::{Feed, Health};
use crate::transport::Subscribe;

/// Entries of one page of what waited before.
const PAGE: usize = 200;

struct Topic {
    place: Place,
    /// `None` while another member is active.
    active: Option<Active>,
    /// When to try to become the active member.
    next_try: Instant,
    /// Last entry seen.
    last: EntryId,
}

/// The active member's state.
struct Active {
    turns: Turns,
    /// What waited before is read first, page by page: of the log, of the replays.
    loading: [Option<EntryId>; 2],
    /// New entries may be there: in the log, in the replays.
    maybe: [bool; 2],
    /// Settlements whose outcome is unknown.
    unsure: Vec<u64>,
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
                // A group that is being moved is back in a moment.
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

struct Keyed {
    member: Arc<Member>,
    spec: Subscribe,
    feed: Feed,
    settle: Arc<dyn Settle>,
    topics: Vec<Topic>,
    next_item: u64,
    /// When to look for replays whose hint was missed.
    next_look: Instant,
    reader: Option<Reader>,
}

impl Keyed {
    fn is_over(&self) -> bool {
        self.feed.stopped().is_cancelled() || self.member.closed.is_cancelled()
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
                let same = |topic: &Topic| {
                    topic.place.name == place.name && topic.place.log.topic == place.log.topic
                };
                match old.iter().position(same) {
                    Some(at) => Topic { place, ..old.swap_remove(at) },
                    None => Topic { active: None, next_try: now, last: place.delivered, place },
                }
            })
            .collect();
        // A moved group begins anew.
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
        match self.member.handle.look_again(&self.member.group, &self.spec, joining).await {
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

    /// One round; `false` when the group is no more.
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
        // Whoever lost the ownership to another begins anew.
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

    /// Goes on with what was settled.
    fn conclude(&mut self) {
        let settled = std::mem::take(&mut *self.member.lanes.lock().expect("not poisoned"));
        for Settled { item, how } in settled {
            let active = self.topics.iter_mut().filter_map(|topic| topic.active.as_mut());
            let Some(active) = active.into_iter().find(|active| active.turns.has(item)) else { continue };
            match how {
                How::Done => active.turns.finish(item),
                How::Again(after, made) => {
                    let at = (!after.is_zero()).then(|| Instant::now() + after);
                    active.turns.again(item, made, at);
                }
                How::Lost => active.unsure.push(item),
            }
        }
    }

    async fn acquire(&mut self, at: usize) -> Result<()> {
        let member = self.member.clone();
        let topic = &mut self.topics[at];
        let Place { log, replay, name, .. } = &topic.place;
        let owner = member.handle.keys.owner(&log.topic, member.group.as_str());
        let mut command =
            scripts::ACQUIRE.on(&[&owner, &log.stream, &log.notes, &replay.stream, &replay.notes]);
        command.arg(&**name).arg(member.consumer.as_str()).arg(member.lease.as_millis() as u64);
        let safe_until = member.safe_from(Instant::now());
        let answer = parts(member.handle.link.ask(command).await?);
        let state = answer.first().map_or(-1, number);
        if state < 0 {
            let left = answer.get(1).map_or(0, number).max(0) as u64;
            let wait = Duration::from_millis(left + 5).min(member.lease).max(Duration::from_millis(20));
            topic.next_try = Instant::now() + wait;
            return Ok(());
        }
        member.owned.lock().expect("not poisoned").push(Owned { topic: log.topic.clone(), safe_until });
        topic.active = Some(Active {
            turns: Turns::default(),
            loading: [Some(EntryId::default()); 2],
            maybe: [true; 2],
            unsure: Vec::new(),
        });
        Ok(())
    }

    /// Finds out what became of settlements that were not answered.
    async fn resolve(&mut self, at: usize) -> Result<bool> {
        let topic = &mut self.topics[at];
        let Some(active) = &mut topic.active else { return Ok(false) };
        let mut some = false;
        while let Some(item) = active.unsure.last().copied() {
            if let Some(known) = active.turns.item(item) {
                let mut ask = redis::cmd("XPENDING");
                let id = known.id.to_string();
                ask.arg(&known.source.stream).arg(&*topic.place.name).arg(&id).arg(&id).arg(1);
                let pending = parts(self.member.handle.link.ask(ask).await?);
                match pending.into_iter().next().map(parts) {
                    None => active.turns.finish(item),
                    Some(pending) => {
                        let made = pending.get(3).map_or(1, number) as u32;
                        active.turns.again(item, made, None);
                    }
                }
            }
            active.unsure.pop();
            some = true;
        }
        Ok(some)
    }

    /// Reads what waited before, then what is new.
    async fn fill(&mut self, at: usize) -> Result<bool> {
        for replay in [false, true] {
            let which = usize::from(replay);
            let Some(active) = &self.topics[at].active else { return Ok(false) };
            if active.turns.has_ready() || !active.turns.has_space() {
                return Ok(false);
            }
            let loading = active.loading[which];
            // The log's past comes before the replays' past, and both before anything new.
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
        let most = if loading.is_some() { PAGE } else { (member.credit * 2).clamp(16, 500) };
        let owner = member.handle.keys.owner(&source.topic, member.group.as_str());
        let mut command = scripts::FETCH.on(&[&source.stream, &source.due, &owner]);
        command.arg(&*place.name).arg(member.consumer.as_str()).arg(most);
        command.arg(loading.map(|after| after.to_string()).unwrap_or_default());
        let Value::Array(answer) = member.handle.link.ask(command).await? else {
            self.lose(at);
            return Ok(true);
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
            let not_before = not_before.map(|wait| now + Duration::from_millis(wait));
            if let Some(Value::Array(fields)) = value.next() {
                read.push((codec::read_fields(id, fields, &source.topic), made, not_before));
            }
        }
        let Some(active) = &mut self.topics[at].active else { return Ok(true) };
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

    async fn take_in(
        &mut self,
        at: usize,
        source: &Arc<Source>,
        read: Vec<(Entry, u32, Option<Instant>)>,
    ) -> Result<()> {
        let topic = source.topic.clone();
        let mut unwanted: Vec<_> = Vec::new();
        for (entry, made, not_before) in read {
            let wanted = entry.ill_named
                || source.replay
                || self.topics[at].place.filters.matches(&entry.message.subject, entry.id);
            if wanted {
                self.next_item += 1;
                let number = self.next_item;
                if let Some(active) = &mut self.topics[at].active {
                    active.turns.add(number, source, entry, made, not_before);
                }
            } else {
                unwanted.push((entry, made, not_before));
            }
        }
        if unwanted.is_empty() {
            return Ok(());
        }
        let place = &self.topics[at].place;
        let settings = self.member.handle.keys.settings(&topic, self.member.group.as_str());
        let mut command = scripts::SKIP.on(&[&source.stream, &settings]);
        command.arg(place.version.as_str()).arg(&*place.name);
        args(&mut command, unwanted.iter().map(|(entry, ..)| entry.id.to_string()));
        if self.member.handle.link.ask(command).await? == Value::Int(0) {
            // The patterns have changed: everything is judged again, in order.
            self.lose(at);
            self.give_up(at).await?;
            self.member.signals.changed();
        }
        Ok(())
    }

    /// Another member is active, or everything must begin anew.
    fn lose(&mut self, at: usize) {
        let topic = &mut self.topics[at];
        topic.active = None;
        topic.next_try = Instant::now();
        let name = &topic.place.log.topic;
        self.member.owned.lock().expect("not poisoned").retain(|owned| owned.topic != *name);
    }

    async fn give_up(&self, at: usize) -> Result<()> {
        let member = &self.member;
        let keys = &member.handle.keys;
        let topic = &self.topics[at].place.log.topic;
        let mut command = scripts::OWN.on(&[&keys.owner(topic, member.group.as_str())]);
        command
            .arg(member.consumer.as_str())
            .arg(0)
            .arg(keys.wake(member.group.as_str()).as_str())
            .arg("owner");
        member.handle.link.ask(command).await.map(drop)
    }

    /// Hands out what may go, as far as there is room.
    async fn hand_out(&mut self, at: usize) -> Result<bool> {
        let member = self.member.clone();
        let room = member.room(self.feed.free());
        let Some(safe_until) = member
            .owned
            .lock()
            .expect("not poisoned")
            .iter()
            .find(|owned| owned.topic == self.topics[at].place.log.topic)
            .map(|owned| owned.safe_until)
        else {
            return Ok(false);
        };
        let place = self.topics[at].place.clone();
        let Some(active) = &mut self.topics[at].active else { return Ok(false) };
        let now = Instant::now();
        let mut going: Vec<u64> = Vec::new();
        let mut any = false;
        while going.len() < room {
            let Some(item) = active.turns.next(now) else { break };
            let Some(known) = active.turns.item(item) else { continue };
            any = true;
            let expired = !known.replayed
                && known.message.expires_at.is_some_and(|expires| expires <= Timestamp::now());
            if expired {
                skip::expire(&member, &known.source, &place.name, &[known.id]);
                active.turns.finish(item);
            } else {
                going.push(item);
            }
        }
        if going.is_empty() {
            return Ok(any);
        }
        let owner = member.handle.keys.owner(&place.log.topic, member.group.as_str());
        let mut pipeline = Pipeline::new();
        for source in [&place.log, &place.replay] {
            let mut command = scripts::HAND.on(&[&source.stream, &source.due, &owner]);
            command.arg(&*place.name).arg(member.consumer.as_str());
            let mut some = false;
            for known in going.iter().filter_map(|item| active.turns.item(*item)) {
                if known.source.replay == source.replay {
                    command.arg(known.id.to_string()).arg(known.made + 1);
                    some = true;
                }
            }
            if some {
                pipeline.add_command(command);
            }
        }
        let replies = match member.handle.link.run(&pipeline).await {
            Ok(replies) => replies,
            Err(failure) => {
                // Handed out or not: whoever has it is asked before it goes again.
                going.iter().rev().for_each(|item| active.turns.put_back(*item));
                return Err(failure.into());
            }
        };
        for value in replies {
            if reply(value)? != Value::Int(1) {
                self.lose(at);
                return Ok(true);
            }
        }
        for item in going {
            self.push(at, item, &place, now, safe_until);
        }
        Ok(true)
    }

    fn push(&mut self, at: usize, item: u64, place: &Place, since: Instant, safe_until: Instant) {
        let Some(active) = &self.topics[at].active else { return };
        let Some(known) = active.turns.item(item) else { return };
        let attempt = known.made + 1;
        let held = Held {
            source: known.source.clone(),
            name: place.name.clone(),
            id: known.id,
            attempt,
            since,
            safe_until,
            item: Some(item),
        };
        let token = self.member.table.lock().expect("not poisoned").insert(held) as u64;
        if known.ill_named {
            let rejection =
                Rejection::new(Reason::Undecodable, "the subject of this foreign message breaks the rules");
            drop(self.settle.settle(token, Settlement::Reject(rejection)));
            return;
        }
        let slot = if self.is_over() { None } else { self.feed.try_slot() };
        let Some(slot) = slot else {
            drop(self.settle.settle(token, Settlement::Release));
            return;
        };
        let mut info = DeliveryInfo::new(attempt);
        info.position = Some(known.origin.position());
        info.published_at = known.origin.time();
        info.replayed = known.replayed;
        self.feed.push(Delivery::new(known.message.clone(), info, self.settle.clone(), token, slot));
    }

    /// Waits for something new, a settlement, room, or the time of a retry.
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
                    until = active.turns.next_due().map_or(until, |due| until.min(due));
                    if active.turns.has_ready() {
                        full = true;
                    } else if active.turns.has_space() {
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
                () = tokio::time::sleep(block) => {}
                () = self.feed.stopped().cancelled() => {}
                () = self.member.closed.cancelled() => {}
            }
            return Ok(());
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.member.handle.link).await?);
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(block);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(block.as_millis().max(1) as u64).arg("STREAMS");
        args(&mut command, reads.iter().map(|(stream, _)| stream));
        args(&mut command, reads.iter().map(|(_, last)| last.to_string()));
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
