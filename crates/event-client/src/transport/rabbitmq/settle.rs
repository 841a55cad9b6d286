//! Settles deliveries: acknowledges them, stores copies for retries and dead letters, and returns messages to the
//! group.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use lapin::Channel;
use lapin::options::{BasicNackOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::Inner;
use super::codec::{self, Facts};
use super::connection::command;
use super::delay_queues;
use super::delivery_tags::Ack;
use super::group::Command;
use super::handshake::Version;
use super::member::{Item, Member, Out};
use crate::bounds;
use crate::confirm::{Answer, Confirm};
use crate::delivery::{Rejection, Settle, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Group;
use crate::transport::headers;

/// Header of a dead letter: its own id.
pub(super) const LETTER: &str = "bus-dlq-id";

/// The queue of one subscription's settlements to its member task.
pub(super) struct Settler(pub(super) mpsc::UnboundedSender<Command>);

/// A caller that awaits a settlement. Dropped without a result, it reports `LeaseLost`.
pub(super) struct Asker(Option<Answer<()>>);

impl Asker {
    pub(super) fn tell(mut self, result: Result<()>) {
        if let Some(answer) = self.0.take() {
            let _ = answer.send(result);
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            let _ = answer.send(Err(lost().during("settle")));
        }
    }
}

pub(super) fn lost() -> Error {
    Error::new(ErrorKind::LeaseLost, "another consumer owns the delivery now")
}

impl Settle for Settler {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Settle(token, settlement, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lost().during("settle"))),
        }
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Progress(token, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lost().during("renew"))),
        }
    }
}

impl Inner {
    /// Stores a copy for this group only, which is not delivered before `after` has passed.
    pub(super) async fn copy_to_group(
        self: Arc<Self>,
        group: Group,
        message: Arc<Message>,
        mut facts: Facts,
        after: Duration,
    ) -> Result<()> {
        let queue = self.names.group(&group);
        if !after.is_zero() {
            facts.due = Some(bounds::time_from_now(after));
        }
        self.wait_and_deliver(Some(&group), queue, &message, &facts).await
    }

    /// Stores a copy in `queue`, through a delay queue when it is not due yet.
    pub(super) async fn wait_and_deliver(
        &self,
        group: Option<&Group>,
        queue: ShortString,
        message: &Message,
        facts: &Facts,
    ) -> Result<()> {
        let properties = codec::copy(message, facts, FieldTable::default())?;
        let tier = delay_queues::left(facts.due).and_then(delay_queues::tier);
        let Some(tier) = tier else {
            return self.republisher.to_queue(queue, properties, message.payload.clone()).await;
        };
        let length = delay_queues::length(tier);
        let room = match group {
            Some(group) => {
                self.mark_room(group, tier).await?;
                self.names.retry(group, length)
            }
            None => self.names.delay(length),
        };
        for again in [true, false] {
            self.delay_queues.ensure(&self.declarer, &self.names, &room, length, &queue).await?;
            match self.republisher.to_queue(room.clone(), properties.clone(), message.payload.clone()).await {
                Err(error) if again && error.kind() == ErrorKind::NotFound => self.delay_queues.forget(&room),
                result => return result,
            }
        }
        unreachable!("the second try returns")
    }

    /// Records once that the group uses this delay queue, so that the administration of the group finds it.
    async fn mark_room(&self, group: &Group, tier: u32) -> Result<()> {
        let known = |rooms: &u32| rooms & (1 << tier) != 0;
        if self.rooms.lock().expect("not poisoned").get(group).is_some_and(known) {
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
        self.rooms.lock().expect("not poisoned").insert(group.clone(), rooms);
        Ok(())
    }

    /// Stores a dead letter.
    pub(super) async fn dead_letter(
        self: Arc<Self>,
        group: Group,
        message: Arc<Message>,
        facts: Facts,
        attempts: u32,
        rejection: Rejection,
    ) -> Result<()> {
        let mut table = FieldTable::default();
        let mut put = |name: &str, value: &str| {
            table.insert(name.into(), codec::text(value));
        };
        put(LETTER, &Uuid::now_v7().to_string());
        put(headers::DLQ_GROUP, group.as_str());
        put(headers::DLQ_REASON, rejection.reason.as_str());
        put(headers::DLQ_ERROR, &headers::escape(&rejection.error).to_string());
        let mut number =
            |name: &str, value: i64| _ = table.insert(name.into(), AMQPValue::LongLongInt(value));
        number(headers::DLQ_ATTEMPTS, attempts.into());
        number(headers::DLQ_TIME, Timestamp::now().as_millisecond());
        let queue = self.names.dead(group.as_str());
        let properties = codec::copy(&message, &facts, table)?;
        match self.republisher.to_queue(queue.clone(), properties.clone(), message.payload.clone()).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.config.provision.creates() => {
                self.declare_dead(group.as_str()).await?;
                self.republisher.to_queue(queue, properties, message.payload.clone()).await
            }
            result => result,
        }
    }
}

impl Member {
    pub(super) fn progress(&mut self, token: Token) -> Result<()> {
        let out = self.out.get_mut(&token).ok_or_else(|| lost().during("renew"))?;
        if out.lease.is_some() {
            out.lease = Some(bounds::from_now(self.spec.lease));
        }
        Ok(())
    }

    pub(super) fn settle(&mut self, token: Token, settlement: Settlement, answer: Answer<()>) {
        let answer = Asker(Some(answer));
        let Some(Out { item, .. }) = self.out.remove(&token) else {
            let told = match settlement {
                Settlement::Release | Settlement::Defer { .. } => Ok(()),
                _ => Err(lost().during("settle")),
            };
            answer.tell(told);
            return;
        };
        match settlement {
            Settlement::Ack => {
                self.tags.settle(item.tag);
                self.told.push(answer);
                self.finish(&item);
            }
            Settlement::Retry { after, .. } if self.spec.keyed => self.retry_here(item, after, answer),
            Settlement::Retry { after, .. } => {
                let facts =
                    Facts { attempt: item.attempt.saturating_add(1), due: None, ..item.facts.clone() };
                self.copy(item, facts, after, Some(answer));
            }
            Settlement::Reject(rejection) => self.dead_letter(item, rejection, Some(answer)),
            Settlement::Defer { after } if self.spec.keyed => {
                self.wait(bounds::from_now(after), item, true);
                answer.tell(Ok(()));
            }
            Settlement::Defer { after } => {
                let facts = Facts { attempt: item.attempt, due: None, ..item.facts.clone() };
                self.copy(item, facts, after, Some(answer));
            }
            Settlement::Release if self.spec.keyed => {
                // In front of the next message of its key, which waits for it.
                self.ready.push_front(item);
                answer.tell(Ok(()));
            }
            Settlement::Release if self.inner.consume.can(Version::returns_uncounted) => {
                self.returned.push(item.tag);
                answer.tell(Ok(()));
            }
            Settlement::Release => {
                let facts = Facts { attempt: item.attempt, due: None, ..item.facts.clone() };
                self.copy(item, facts, Duration::ZERO, Some(answer));
            }
        }
    }

    /// A keyed message waits in this member, and the next ones of its key behind it; it keeps its place in the broker's
    /// queue.
    fn retry_here(&mut self, mut item: Item, after: Duration, answer: Asker) {
        item.attempt = item.attempt.saturating_add(1);
        let due = (!after.is_zero()).then(|| bounds::time_from_now(after));
        self.counted.keep_due(&item.message, item.offset() - 1, due);
        self.to_note.push(answer);
        self.wait(bounds::from_now(after), item, true);
    }

    pub(super) fn copy(&mut self, item: Item, facts: Facts, after: Duration, answer: Option<Asker>) {
        let copied = self.inner.clone().copy_to_group(self.group.clone(), item.message.clone(), facts, after);
        self.keep_copying(item, answer, copied);
    }

    /// A copy runs in its own task: it may hold the control channel, and the member waits for that channel before it
    /// leaves.
    pub(super) fn keep_copying(
        &mut self,
        item: Item,
        answer: Option<Asker>,
        copied: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let copied = AbortOnDropHandle::new(tokio::spawn(copied));
        self.copying.push(Box::pin(async move {
            let given_up =
                |error| Err(Error::new(ErrorKind::Internal, "a copy was cancelled").because(error));
            let result = copied.await.unwrap_or_else(given_up);
            (item, answer, result)
        }));
    }

    /// Returns a message to the group as if it had not been delivered: to its place if the broker supports that, as a
    /// copy otherwise.
    pub(super) fn release(&mut self, item: Item) {
        if self.inner.consume.can(Version::returns_uncounted) {
            self.returned.push(item.tag);
            return;
        }
        let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
        self.copy(item, facts, Duration::ZERO, None);
    }

    pub(super) fn dead_letter(&mut self, item: Item, rejection: Rejection, answer: Option<Asker>) {
        let mut facts = item.facts.clone();
        facts.attempt = 1;
        let buried = self.inner.clone().dead_letter(
            self.group.clone(),
            item.message.clone(),
            facts,
            item.attempt,
            rejection,
        );
        self.keep_copying(item, answer, buried);
    }

    /// Handles the end of a copy: if it is stored, the original is acknowledged; otherwise the original returns to the
    /// group.
    pub(super) async fn copied(
        &mut self,
        channel: &Channel,
        item: Item,
        answer: Option<Asker>,
        result: Result<()>,
    ) {
        match result {
            Ok(()) => {
                self.tags.settle(item.tag);
                self.told.extend(answer);
                self.finish(&item);
            }
            Err(error) => {
                tracing::warn!(%error, group = %self.group, "a copy could not be stored; the message goes back to its group");
                if let Some(answer) = answer {
                    answer.tell(Err(error.during("settle")));
                }
                if self.spec.keyed {
                    // It keeps its place; another try follows after a second.
                    self.wait(Instant::now() + Duration::from_secs(1), item, true);
                } else {
                    self.give_back(channel, &item).await;
                }
            }
        }
    }

    /// Returns a message to the broker, counted as an attempt. It is rejected, because newer brokers do not count a
    /// `nack`.
    pub(super) async fn give_back(&mut self, channel: &Channel, item: &Item) {
        self.tags.told(item.tag);
        let back = channel.basic_reject(item.tag, BasicRejectOptions { requeue: true });
        let _ = command("give back", back).await;
    }

    /// Whether settlements are not yet written to the broker.
    pub(super) fn owes(&self) -> bool {
        self.writing.is_some()
            || !self.told.is_empty()
            || !self.returned.is_empty()
            || self.tags.to_tell() > 0
    }

    /// Starts to write acknowledgements, one bundle at a time: settlements that arrive meanwhile go with the next
    /// bundle.
    pub(super) fn flush(&mut self, channel: &Channel) {
        if self.writing.is_some() || !self.owes() {
            return;
        }
        let mut acks = Vec::new();
        self.tags.flush(&mut acks);
        let returned = std::mem::take(&mut self.returned);
        returned.iter().for_each(|tag| self.tags.told(*tag));
        let (told, channel) = (std::mem::take(&mut self.told), channel.clone());
        self.writing = Some(Box::pin(async move {
            let write = async {
                let acks = acks.into_iter().map(|Ack { tag, multiple }| {
                    channel.basic_ack(tag, lapin::options::BasicAckOptions { multiple })
                });
                let requeue = BasicNackOptions { multiple: false, requeue: true };
                let nacks = returned.into_iter().map(|tag| channel.basic_nack(tag, requeue));
                tokio::try_join!(try_join_all(acks), try_join_all(nacks))
            };
            (told, command("acknowledge", write).await.map(drop))
        }));
    }

    /// Handles the end of a write: after a success the callers are notified; after an error their dropped [`Asker`]s
    /// report the loss.
    pub(super) fn wrote(&mut self, (told, result): (Vec<Asker>, Result<()>)) -> Result<()> {
        self.writing = None;
        if result.is_ok() {
            self.last_told = Some(Instant::now());
            told.into_iter().rev().for_each(|answer| answer.tell(Ok(())));
        }
        result
    }

    /// Writes all settlements that are not yet written to the broker.
    pub(super) async fn flush_all(&mut self, channel: &Channel) -> Result<()> {
        while self.owes() {
            self.flush(channel);
            if let Some(writing) = self.writing.as_mut() {
                let written = writing.await;
                self.wrote(written)?;
            }
        }
        Ok(())
    }
}
