//! Keyed groups: becomes the active member of a topic, and delivers the messages whose turn it is.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::backlog::Backlog;
use super::codec::{Entry, EntryId, args, number, parts};
use super::error::reply;
use super::group::Place;
use super::keyed::{Active, Keyed};
use super::keys::Source;
use super::member::{Owned, Unsettled};
use super::{scripts, unmatched};
use crate::bounds;
use crate::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settlement};
use crate::error::Result;

impl Keyed {
    /// Becomes the active member, if no other member is active.
    pub(super) async fn acquire(&mut self, at: usize) -> Result<()> {
        let member = self.member.clone();
        let topic = &mut self.topics[at];
        let Place { log, replay, name, .. } = &topic.place;
        let owner = member.client.keys.owner(&log.topic, member.group.as_str());
        let mut command =
            scripts::ACQUIRE.on(&[&owner, &log.stream, &log.notes, &replay.stream, &replay.notes]);
        command.arg(&**name).arg(member.consumer.as_str()).arg(bounds::millis(member.lease));
        let safe_until = member.safe_from(Instant::now());
        let answer = parts(member.client.connection.ask(command).await?);
        let state = answer.first().map_or(-1, number);
        if state < 0 {
            let left = answer.get(1).map_or(0, number).max(0) as u64;
            let wait = Duration::from_millis(left + 5).min(member.lease).max(Duration::from_millis(20));
            topic.next_try = Instant::now() + wait;
            return Ok(());
        }
        member.owned.lock().expect("not poisoned").push(Owned { topic: log.topic.clone(), safe_until });
        topic.active = Some(Active {
            backlog: Backlog::default(),
            loading: [Some(EntryId::default()); 2],
            seen: [EntryId::default(); 2],
            unwanted: Vec::new(),
            maybe: [true; 2],
            unsure: Vec::new(),
        });
        Ok(())
    }

    /// Drops the state of a topic: another member is active, or reading must start again.
    pub(super) fn lose(&mut self, at: usize) {
        let topic = &mut self.topics[at];
        topic.active = None;
        topic.next_try = Instant::now();
        let name = &topic.place.log.topic;
        self.member.owned.lock().expect("not poisoned").retain(|owned| owned.topic != *name);
    }

    /// Releases the ownership, so that another member can become active at once.
    pub(super) async fn give_up(&self, at: usize) -> Result<()> {
        let member = &self.member;
        let keys = &member.client.keys;
        let topic = &self.topics[at].place.log.topic;
        let mut command = scripts::OWN.on(&[&keys.owner(topic, member.group.as_str())]);
        command
            .arg(member.consumer.as_str())
            .arg(0)
            .arg(keys.wake(member.group.as_str()).as_str())
            .arg("owner");
        member.client.connection.ask(command).await.map(drop)
    }

    /// Delivers the messages whose turn it is, as far as there is room.
    pub(super) async fn hand_out(&mut self, at: usize) -> Result<bool> {
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
            let Some(item) = active.backlog.next(now) else { break };
            let Some(known) = active.backlog.item(item) else { continue };
            any = true;
            let expired = !known.replayed
                && known.message.expires_at.is_some_and(|expires| expires <= Timestamp::now());
            if expired {
                unmatched::expire(&member, &known.source, &place.name, &[known.id]);
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
        let Some(known) = active.backlog.item(item) else { return };
        let attempt = known.made + 1;
        let held = Unsettled {
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
                Rejection::new(Reason::Undecodable, "the subject of this foreign message is invalid");
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

    /// Queries the outcome of settlements that had no reply.
    pub(super) async fn resolve(&mut self, at: usize) -> Result<bool> {
        let topic = &mut self.topics[at];
        let Some(active) = &mut topic.active else { return Ok(false) };
        let mut some = false;
        while let Some(item) = active.unsure.last().copied() {
            if let Some(known) = active.backlog.item(item) {
                let mut ask = redis::cmd("XPENDING");
                ask.arg(&known.source.stream).arg(&*topic.place.name).arg(known.id).arg(known.id).arg(1);
                let pending = parts(self.member.client.connection.ask(ask).await?);
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
    pub(super) async fn take_in(
        &mut self,
        at: usize,
        source: &Arc<Source>,
        read: Vec<(Entry, u32, Option<Instant>)>,
    ) -> Result<()> {
        let topic = source.topic.clone();
        let mut unwanted = match &mut self.topics[at].active {
            Some(active) => std::mem::take(&mut active.unwanted),
            None => Vec::new(),
        };
        for (entry, made, not_before) in read {
            let wanted = entry.ill_named
                || source.replay
                || self.topics[at].place.filters.matches(&entry.message.subject, entry.id);
            if wanted {
                self.next_item += 1;
                let number = self.next_item;
                if let Some(active) = &mut self.topics[at].active {
                    active.backlog.add(number, source, entry, made, not_before);
                }
            } else {
                unwanted.push(entry.id);
            }
        }
        if unwanted.is_empty() {
            return Ok(());
        }
        let place = &self.topics[at].place;
        let settings = self.member.client.keys.settings(&topic, self.member.group.as_str());
        let mut command = scripts::SKIP.on(&[&source.stream, &settings]);
        command.arg(place.version.as_str()).arg(&*place.name);
        args(&mut command, unwanted.iter().map(ToString::to_string));
        let skipped = match self.member.client.connection.ask(command).await {
            Ok(skipped) => skipped,
            Err(error) => {
                if let Some(active) = &mut self.topics[at].active {
                    active.unwanted = unwanted;
                }
                return Err(error);
            }
        };
        if skipped == Value::Int(0) {
            // The patterns have changed: all entries are checked again, in order.
            self.lose(at);
            self.give_up(at).await?;
            self.member.signals.changed();
        }
        Ok(())
    }
}
