//! One topic of a keyed group at one member: reads the entries while the member is the active one, and delivers those
//! whose turn it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::backlog::Backlog;
use super::codec::{self, Entry, EntryId, args, number, parts};
use super::deliver::{Deliverer, Fetched};
use super::error::reply;
use super::group::Place;
use super::keys::Source;
use super::member::{How, Member, Settled, Unsettled};
use super::{ownership, scripts, unmatched};
use event_transport::bounds;
use event_transport::error::Result;

/// Number of entries in one page of those that waited before.
const PAGE: usize = 200;

pub(super) struct TopicReader {
    pub(super) place: Place,
    /// `None` while another member is active.
    pub(super) active: Option<Active>,
    /// When to try again to become the active member.
    pub(super) next_try: Instant,
    /// Last entry received.
    pub(super) last: EntryId,
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

impl Active {
    /// The state of a member that has just become active: everything is still to be read.
    fn new() -> Self {
        Self {
            backlog: Backlog::default(),
            loading: [Some(EntryId::default()); 2],
            seen: [EntryId::default(); 2],
            unwanted: Vec::new(),
            maybe: [true; 2],
            unsure: Vec::new(),
        }
    }

    /// Processes a settlement of one of its items.
    pub(super) fn conclude(&mut self, Settled { item, how }: Settled) {
        match how {
            How::Done => self.backlog.finish(item),
            How::Again(after, made) => {
                let at = (!after.is_zero()).then(|| bounds::from_now(after));
                self.backlog.again(item, made, at);
            }
            How::Lost => self.unsure.push(item),
        }
    }
}

impl TopicReader {
    pub(super) fn new(place: Place) -> Self {
        Self { active: None, next_try: Instant::now(), last: place.delivered, place }
    }

    /// Does what can be done now; `false` when there is nothing to do.
    pub(super) async fn step(&mut self, deliverer: &Deliverer) -> Result<bool> {
        let member = &*deliverer.member;
        if self.active.is_none() && self.next_try <= Instant::now() {
            match ownership::acquire(member, &self.place).await? {
                Some(wait) => self.next_try = Instant::now() + wait,
                None => self.active = Some(Active::new()),
            }
        }
        let mut busy = self.resolve(member).await?;
        busy |= self.fill(member).await?;
        busy |= self.hand_out(deliverer).await?;
        Ok(busy)
    }

    /// Drops the state: another member is active, or reading must start again.
    fn lose(&mut self, member: &Member) {
        self.active = None;
        self.next_try = Instant::now();
        ownership::forget(member, &self.place.log.topic);
    }

    /// Reads the entries that waited before, then new ones.
    async fn fill(&mut self, member: &Member) -> Result<bool> {
        for replay in [false, true] {
            let which = usize::from(replay);
            let Some(active) = &self.active else { return Ok(false) };
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
            return self.read(member, replay, loading).await;
        }
        Ok(false)
    }

    async fn read(&mut self, member: &Member, replay: bool, loading: Option<EntryId>) -> Result<bool> {
        let which = usize::from(replay);
        let place = self.place.clone();
        let source = if replay { &place.replay } else { &place.log };
        let most = if loading.is_some() { PAGE } else { (member.max_in_flight * 2).clamp(16, 500) };
        let owner = member.client.keys.owner(&source.topic, member.group.as_str());
        let mut command = scripts::FETCH.on(&[&source.stream, &source.due, &owner]);
        command.arg(&*place.name).arg(member.consumer.as_str()).arg(most);
        command.arg(loading.map(|after| after.to_string()).unwrap_or_default());
        let answer = match member.client.connection.ask(command).await {
            Ok(Value::Array(answer)) => answer,
            Ok(_) => {
                self.lose(member);
                return Ok(true);
            }
            Err(error) => {
                // The server may have read entries all the same: no later entry may overtake them.
                if let Some(active) = &mut self.active {
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
        let Some(active) = &mut self.active else { return Ok(true) };
        active.seen[which] = active.seen[which].max(last);
        match loading {
            Some(_) => active.loading[which] = (count == most).then_some(last),
            None => active.maybe[which] = count == most,
        }
        if !replay && loading.is_none() {
            self.last = self.last.max(last);
        }
        self.take_in(member, source, read).await?;
        Ok(count > 0)
    }

    /// Delivers the messages whose turn it is, as far as there is room.
    async fn hand_out(&mut self, deliverer: &Deliverer) -> Result<bool> {
        let member = &deliverer.member;
        let room = deliverer.room();
        let Some(safe_until) = ownership::safe_until(member, &self.place.log.topic) else {
            return Ok(false);
        };
        let place = self.place.clone();
        let Some(active) = &mut self.active else { return Ok(false) };
        let now = Instant::now();
        let mut going: Vec<u64> = Vec::new();
        let mut any = false;
        while going.len() < room {
            let Some(item) = active.backlog.next(now) else { break };
            let Some(known) = active.backlog.item(item) else { continue };
            any = true;
            let expired = !known.replayed
                && known.message.expires_at.is_some_and(|expires| expires <= Timestamp::now());
            if expired {
                unmatched::expire(member, &known.source, &place.name, &[known.id]);
                active.backlog.finish(item);
            } else {
                going.push(item);
            }
        }
        if going.is_empty() {
            return Ok(any);
        }
        let owner = member.client.keys.owner(&place.log.topic, member.group.as_str());
        let mut pipeline = Pipeline::new();
        for source in [&place.log, &place.replay] {
            let mut command = scripts::HAND.on(&[&source.stream, &source.due, &owner]);
            command.arg(&*place.name).arg(member.consumer.as_str());
            let mut some = false;
            for known in going.iter().filter_map(|item| active.backlog.item(*item)) {
                if known.source.replay == source.replay {
                    command.arg(known.id).arg(known.made + 1);
                    some = true;
                }
            }
            if some {
                pipeline.add_command(command);
            }
        }
        let replies = match member.client.connection.run(&pipeline).await {
            Ok(replies) => replies,
            Err(failure) => {
                // They may be assigned already. The next hand-out assigns them again, after its script has checked the
                // ownership.
                going.iter().rev().for_each(|item| active.backlog.put_back(*item));
                return Err(failure.into());
            }
        };
        for value in replies {
            if reply(value)? != Value::Int(1) {
                self.lose(member);
                return Ok(true);
            }
        }
        for item in going {
            self.deliver(deliverer, item, now, safe_until);
        }
        Ok(true)
    }

    fn deliver(&self, deliverer: &Deliverer, item: u64, since: Instant, safe_until: Instant) {
        let Some(known) = self.active.as_ref().and_then(|active| active.backlog.item(item)) else { return };
        let unsettled = Unsettled {
            source: known.source.clone(),
            name: self.place.name.clone(),
            id: known.id,
            attempt: known.made + 1,
            since,
            safe_until,
            item: Some(item),
        };
        let fetched = Fetched {
            message: known.message.clone(),
            origin: known.origin,
            replayed: known.replayed,
            ill_named: known.ill_named,
        };
        deliverer.deliver(fetched, unsettled, deliverer.is_over());
    }

    /// Queries the outcome of settlements that had no reply.
    async fn resolve(&mut self, member: &Member) -> Result<bool> {
        let Some(active) = &mut self.active else { return Ok(false) };
        let mut some = false;
        while let Some(item) = active.unsure.last().copied() {
            if let Some(known) = active.backlog.item(item) {
                let mut ask = redis::cmd("XPENDING");
                ask.arg(&known.source.stream).arg(&*self.place.name).arg(known.id).arg(known.id).arg(1);
                let pending = parts(member.client.connection.ask(ask).await?);
                match pending.into_iter().next().map(parts) {
                    None => active.backlog.finish(item),
                    Some(pending) => {
                        let made = pending.get(3).map_or(1, number) as u32;
                        active.backlog.again(item, made, None);
                    }
                }
            }
            active.unsure.pop();
            some = true;
        }
        Ok(some)
    }

    /// Adds the entries that the group wants to the backlog, and acknowledges the others.
    async fn take_in(
        &mut self,
        member: &Member,
        source: &Arc<Source>,
        read: Vec<(Entry, u32, Option<Instant>)>,
    ) -> Result<()> {
        let topic = source.topic.clone();
        let mut unwanted = match &mut self.active {
            Some(active) => std::mem::take(&mut active.unwanted),
            None => Vec::new(),
        };
        for (entry, made, not_before) in read {
            let wanted = entry.ill_named
                || source.replay
                || self.place.filters.matches(&entry.message.subject, entry.id);
            if wanted {
                let number = member.keyed.next_item.fetch_add(1, Ordering::Relaxed);
                if let Some(active) = &mut self.active {
                    active.backlog.add(number, source, entry, made, not_before);
                }
            } else {
                unwanted.push(entry.id);
            }
        }
        if unwanted.is_empty() {
            return Ok(());
        }
        let place = &self.place;
        let settings = member.client.keys.settings(&topic, member.group.as_str());
        let mut command = scripts::SKIP.on(&[&source.stream, &settings]);
        command.arg(place.version.as_str()).arg(&*place.name);
        args(&mut command, unwanted.iter().map(ToString::to_string));
        let skipped = match member.client.connection.ask(command).await {
            Ok(skipped) => skipped,
            Err(error) => {
                if let Some(active) = &mut self.active {
                    active.unwanted = unwanted;
                }
                return Err(error);
            }
        };
        if skipped == Value::Int(0) {
            // The patterns have changed: all entries are checked again, in order.
            self.lose(member);
            ownership::release(member, &topic).await?;
            member.signals.changed();
        }
        Ok(())
    }
}
