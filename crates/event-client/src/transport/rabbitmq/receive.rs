//! Handles messages that a member has fetched and no handler has taken: decodes them, queues them by key, and delivers
//! them when there is room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::Channel;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::client_bus::Holding;
use super::codec::Facts;
use super::member::{Item, Member, Out};
use super::{codec, delay_queues};
use crate::bounds;
use crate::delivery::{Delivery, DeliveryInfo, Reason, Rejection};
use crate::error::Error;
use crate::message::Message;
use crate::subject::Subject;

impl Member {
    /// Handles a delivery of the broker.
    pub(super) async fn receive(&mut self, delivery: lapin::message::Delivery) {
        self.seen += 1;
        let tag = delivery.delivery_tag;
        if !self.tags.received(tag) {
            self.gap.get_or_insert(tag);
        }
        if self.gap.is_some() {
            return;
        }
        let payload = Bytes::from(delivery.data);
        let key = delivery.routing_key.as_str();
        let read = match codec::read(key, &delivery.properties, payload.clone()) {
            Ok(read) => read,
            Err(error) => return self.undecodable(tag, key, payload, &error),
        };
        if self.spec.keyed && (delivery.redelivered || read.returns > 0) {
            self.counted.load(&self.inner, &self.group).await;
        }
        let message = Arc::new(read.message);
        let mut facts = read.facts;
        let first = facts.attempt;
        facts.attempt = first.saturating_add(read.returns);
        let mut attempt = i64::from(facts.attempt) + self.counted.offset(&message);
        // Behind another message of its key, no handler can have tried it, however often it was fetched.
        if read.returns > 0
            && self.spec.keyed
            && message.key.as_ref().is_some_and(|key| self.lanes.is_busy(key))
        {
            attempt = attempt.min(first.into());
        }
        let attempt = u32::try_from(attempt).unwrap_or(1).max(1);
        let item = Item { tag, message, facts, attempt };
        if self.stopping && !self.spec.keyed {
            return self.release(item);
        }
        if let Some(left) = delay_queues::left(item.facts.due) {
            if delay_queues::tier(left).is_some() {
                let (inner, group) = (self.inner.clone(), self.group.clone());
                let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
                let message = item.message.clone();
                self.keep_copying(item, None, async move {
                    let queue = inner.names.group(&group);
                    inner.wait_and_deliver(Some(&group), queue, &message, &facts).await
                });
            } else {
                self.wait(bounds::from_now(left), item, false);
            }
            return;
        }
        // The id must be the same in each delivery, so a message without an id is stored again, as a copy with an id,
        // before any handler sees it. A message with a key keeps its place instead, because its order is more
        // important.
        if !(read.named || self.spec.keyed && item.message.key.is_some()) {
            let published_at = item.facts.published_at.or_else(|| Some(Timestamp::now()));
            let facts = Facts { attempt: item.attempt, published_at, ..item.facts.clone() };
            return self.copy(item, facts, Duration::ZERO, None);
        }
        self.line_up(item);
    }

    pub(super) fn line_up(&mut self, item: Item) {
        match self.key(&item) {
            Some(key) => {
                if let Some(free) = self.lanes.offer(&key, item) {
                    self.line_up_next(free);
                }
            }
            None => self.line_up_next(item),
        }
    }

    /// The message is the first of its key: makes it ready, or lets it wait for a retry time that the previous owner
    /// set.
    fn line_up_next(&mut self, item: Item) {
        match self.counted.left(&item.message) {
            Some(left) => self.wait(bounds::from_now(left), item, true),
            None => self.ready.push_back(item),
        }
    }

    fn key(&self, item: &Item) -> Option<SmolStr> {
        if self.spec.keyed { item.message.key.clone() } else { None }
    }

    pub(super) fn wait(&mut self, until: Instant, item: Item, retry: bool) {
        self.tokens += 1;
        self.waits.insert((until, self.tokens), (item, retry));
    }

    /// Handles a foreign message that cannot be decoded: it becomes a dead letter with its original bytes.
    fn undecodable(&mut self, tag: u64, routing_key: &str, payload: Bytes, error: &Error) {
        let subject = Subject::new("foreign").expect("a valid subject");
        let message = Arc::new(Message::new(subject, "application/octet-stream", payload));
        let item = Item { tag, message, facts: Facts::default(), attempt: 1 };
        let rejection = Rejection::new(
            Reason::Undecodable,
            format!("the routing key {routing_key:?} is not a valid subject: {error}"),
        );
        self.dead_letter(item, rejection, None);
    }

    /// Delivers messages as far as consumers have room.
    pub(super) fn hand_out(&mut self) {
        if self.stopping {
            return;
        }
        while let Some(item) = self.ready.front() {
            let expired = item.message.expires_at.is_some_and(|at| at <= Timestamp::now());
            if expired && !item.facts.replayed {
                let item = self.ready.pop_front().expect("just seen");
                metrics::counter!("event_client_expired_total", "transport" => "rabbitmq").increment(1);
                self.tags.settle(item.tag);
                self.finish(&item);
                continue;
            }
            let Some(slot) = self.feed.try_slot() else { return };
            let mut item = self.ready.pop_front().expect("just seen");
            item.facts.first_attempt_at.get_or_insert_with(Timestamp::now);
            self.tokens += 1;
            let mut info = DeliveryInfo::new(item.attempt);
            info.published_at = item.facts.published_at;
            info.replayed = item.facts.replayed;
            let delivery = Delivery::new(item.message.clone(), info, self.settler.clone(), self.tokens, slot);
            self.out.insert(self.tokens, Out { item, lease: None });
            self.feed.push(delivery);
        }
    }

    /// The message is settled for good: the next one of its key may be delivered.
    pub(super) fn finish(&mut self, item: &Item) {
        if self.spec.keyed {
            self.counted.forget(&item.message);
            if let Some(key) = &item.message.key
                && let Some(next) = self.lanes.finish(key)
            {
                self.line_up_next(next);
            }
        }
    }

    /// Handles leases that have expired and waits that are over.
    pub(super) async fn pass(&mut self, channel: &Channel) {
        let now = Instant::now();
        let late: Vec<_> = self
            .out
            .iter()
            .filter(|(_, out)| out.lease.is_some_and(|at| at <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            let Some(Out { item, .. }) = self.out.remove(&token) else { continue };
            if !self.spec.keyed {
                self.give_back(channel, &item).await;
            }
            // A keyed message goes back with all the others when this channel closes.
        }
        while let Some(entry) = self.waits.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (item, retry) = entry.remove();
            if retry { self.ready.push_back(item) } else { self.line_up(item) }
        }
    }

    /// Returns the state of this member, for status queries.
    pub(super) fn holding(&self) -> Holding {
        let waiting = self.waits.values().filter(|(_, retry)| *retry).count();
        let early = self.waits.len() - waiting;
        let (ready, lanes) = (self.ready.len(), self.lanes.waiting());
        let oldest = (self.out.values().map(|out| &out.item))
            .chain(&self.ready)
            .chain(self.waits.values().map(|(item, _)| item))
            .chain(self.lanes.iter())
            .filter_map(|item| item.facts.published_at)
            .min();
        let hidden = if self.spec.keyed { 0 } else { ready };
        Holding {
            group: self.group.to_string(),
            live: !self.stopping,
            in_flight: (self.out.len() + self.copying.len() + hidden) as u64,
            held: (lanes + early + if self.spec.keyed { ready } else { 0 }) as u64,
            retrying: waiting as u64,
            oldest: oldest.map(Timestamp::as_millisecond),
            seen: self.seen,
        }
    }
}
