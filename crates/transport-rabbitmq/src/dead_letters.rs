//! Dead letters: a durable queue for each group; a command takes all letters of it and returns the ones that stay.
//!
//! A queue can only be read by taking messages from it. So a command holds a lock, takes all letters without
//! acknowledging them, acknowledges the ones to remove, and returns the others to their places. If the process dies
//! meanwhile, the broker returns all of them: a letter that was just being replayed may then be replayed once more,
//! none is lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use smol_str::SmolStr;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::client::Client;
use super::codec::{self, Facts, Fields};
use super::connection::command;
use super::declare::{arguments, number, word};
use super::registry::Registrar;
use super::republish::Republisher;
use event_transport::delivery::{Reason, Rejection};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::subject::Group;
use event_transport::{DeadLetter, DeadLetterFilter, headers};

/// Header of a dead letter: its own id.
const LETTER: &str = "bus-dlq-id";
/// Maximum number of letters of a group that can be read: the oldest ones.
const MOST: u16 = u16::MAX;
/// How long the broker may take to send one letter.
const EACH: Duration = Duration::from_secs(5);

/// A letter that is taken from its queue and not acknowledged.
struct Taken {
    letter: DeadLetter,
    facts: Facts,
    tag: u64,
    /// Index of the channel on which it came.
    from: usize,
    chosen: bool,
}

/// The operation on the chosen letters.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Stay,
    Replay,
    Drop,
}

/// The dead letters of all groups.
#[derive(Debug)]
pub(super) struct DeadLetters {
    client: Arc<Client>,
    registrar: Arc<Registrar>,
    republisher: Republisher,
}

impl DeadLetters {
    pub(super) fn new(client: Arc<Client>, registrar: Arc<Registrar>, republisher: Republisher) -> Self {
        Self { client, registrar, republisher }
    }

    /// Declares the queue of a group's dead letters.
    pub(super) async fn declare(&self, group: &str) -> Result<()> {
        let table = arguments([
            ("x-queue-type", word("quorum")),
            // Reading the letters takes them and returns them.
            ("x-delivery-limit", number(1_000_000_000)),
        ]);
        self.client.declare_known(self.client.names.dead(group), table).await
    }

    /// Stores a dead letter.
    pub(super) async fn store(
        &self,
        group: &Group,
        message: &Message,
        facts: &Facts,
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
        let queue = self.client.names.dead(group.as_str());
        let properties = codec::copy(message, facts, table)?;
        match self.republisher.to_queue(queue.clone(), properties.clone(), message.payload.clone()).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.client.config.provision.creates() => {
                self.declare(group.as_str()).await?;
                self.republisher.to_queue(queue, properties, message.payload.clone()).await
            }
            result => result,
        }
    }

    /// Runs the operation on the chosen letters, and returns them.
    pub(super) async fn letters(&self, filter: DeadLetterFilter, fate: Fate) -> Result<Vec<DeadLetter>> {
        let list = self.registrar.read().await?;
        let mut groups: Vec<&String> = list.groups.keys().chain(&list.buried).collect();
        if let Some(group) = &filter.group {
            groups.retain(|name| *name == group.as_str());
        }
        let turn = self.registrar.lock("dlq").await?;
        let mut channels = Vec::new();
        let result = async {
            let mut taken = Vec::new();
            for group in groups {
                if let Some((channel, letters)) = self.take(group, channels.len()).await? {
                    channels.push((channel, group.clone(), letters.len()));
                    taken.extend(letters);
                }
            }
            taken.sort_by(|a, b| (a.letter.dead_at, &a.letter.id).cmp(&(b.letter.dead_at, &b.letter.id)));
            let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
            let mut count = 0;
            for item in &mut taken {
                item.chosen = count < limit && chosen(&item.letter, &filter);
                count += usize::from(item.chosen);
            }
            if fate == Fate::Replay {
                // All or nothing: a letter without a group would be lost.
                for item in taken.iter().filter(|item| item.chosen) {
                    if !list.groups.contains_key(item.letter.group.as_str()) {
                        return Err(Error::new(ErrorKind::NotFound, "no group of this name exists")
                            .with("group", &item.letter.group)
                            .with("dead_letter", &item.letter.id));
                    }
                }
            }
            self.decide(&mut taken, &channels, fate).await?;
            Ok(taken)
        };
        let result = result.await;
        let (mut letters, mut stay) = (Vec::new(), vec![true; channels.len()]);
        let mut failure = None;
        match result {
            Ok(taken) => {
                stay = vec![false; channels.len()];
                for item in taken {
                    if item.chosen {
                        letters.push(item.letter);
                    } else {
                        stay[item.from] = true;
                    }
                }
            }
            Err(error) => failure = Some(error),
        }
        let kept = if fate == Fate::Stay { 0 } else { letters.len() };
        for (channel, group, count) in &channels {
            let back = channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            if stay.iter().any(|stay| *stay) || fate == Fate::Stay {
                let _ = command("give back", back).await;
            }
            let _ = command("close", channel.close(200, "seen".into())).await;
            let gone = if failure.is_some() { 0 } else { kept };
            self.settled_again(group, count.saturating_sub(gone)).await;
        }
        turn.unlock().await;
        match failure {
            Some(error) => Err(error),
            None => Ok(letters),
        }
    }

    /// Waits until the returned letters are counted again, so that the next command sees them.
    async fn settled_again(&self, group: &str, at_least: usize) {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            match self.client.declarer.counts(self.client.names.dead(group)).await {
                Ok(Some(counts)) if counts.ready < at_least as u64 => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                _ => return,
            }
        }
    }

    async fn decide(
        &self,
        taken: &mut [Taken],
        channels: &[(Channel, String, usize)],
        fate: Fate,
    ) -> Result<()> {
        if fate == Fate::Stay {
            return Ok(());
        }
        let chosen: Vec<_> = taken.iter().filter(|item| item.chosen).collect();
        let mut failure = None;
        let mut moved = vec![true; chosen.len()];
        if fate == Fate::Replay {
            // Copies are sent in order; each is stored before its letter is acknowledged.
            let copies = chosen.iter().map(|item| {
                let facts = Facts { attempt: 1, replayed: true, due: None, ..item.facts.clone() };
                let facts = Facts { first_attempt_at: None, ..facts };
                let properties = codec::copy(&item.letter.message, &facts, FieldTable::default());
                let queue = self.client.names.group(&item.letter.group);
                async move {
                    self.republisher.to_queue(queue, properties?, item.letter.message.payload.clone()).await
                }
            });
            for (moved, result) in moved.iter_mut().zip(join_all(copies).await) {
                if let Err(error) = result {
                    *moved = false;
                    failure = Some(error);
                }
            }
        }
        for (item, _) in chosen.iter().zip(&moved).filter(|(_, moved)| **moved) {
            let ack = channels[item.from].0.basic_ack(item.tag, BasicAckOptions::default());
            command("settle a dead letter", ack).await?;
        }
        failure.map_or(Ok(()), Err)
    }

    /// Takes all letters of a group; `None` when it has none.
    async fn take(&self, group: &str, from: usize) -> Result<Option<(Channel, Vec<Taken>)>> {
        let queue = self.client.names.dead(group);
        let ready = self.client.declarer.ready(queue.clone()).await?;
        if ready == 0 {
            return Ok(None);
        }
        let channel = self.client.consume.channel().await?;
        command("set the credit", channel.basic_qos(MOST, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue, "letters".into(), options, FieldTable::default());
        let mut consumer = command("read dead letters", consume).await?;
        let mut taken = Vec::new();
        for _ in 0..ready.min(MOST.into()) {
            let Ok(Some(Ok(delivery))) = timeout(EACH, consumer.next()).await else {
                let _ = channel.close(200, "failed".into()).await;
                return Err(super::error::timeout("read dead letters"));
            };
            let tag = delivery.delivery_tag;
            match self.read_letter(group, &delivery.properties, delivery.data) {
                Ok((letter, facts)) => taken.push(Taken { letter, facts, tag, from, chosen: false }),
                Err(error) => {
                    tracing::warn!(%error, group, "a dead letter cannot be read; it stays where it is");
                }
            }
        }
        let cancel = channel.basic_cancel("letters".into(), BasicCancelOptions::default());
        command("stop reading", cancel).await?;
        Ok(Some((channel, taken)))
    }

    fn read_letter(
        &self,
        group: &str,
        properties: &BasicProperties,
        data: Vec<u8>,
    ) -> Result<(DeadLetter, Facts)> {
        let fields = Fields(properties.headers().as_ref());
        let group = Group::new(group)?;
        let subject = death(properties, "routing-keys");
        let read = codec::read(subject.as_deref().unwrap_or("unknown"), properties, data.into())?;
        let id = fields.text(LETTER).unwrap_or_else(|| codec::id_text(&read.message.id));
        let reason = fields.text(headers::DLQ_REASON);
        let reason = Reason::ALL.into_iter().find(|known| Some(known.as_str()) == reason.as_deref());
        let dead_at = fields.time(headers::DLQ_TIME).or(read.facts.published_at).unwrap_or_default();
        // A letter without a reason of this library comes from the broker: its consumers kept dying.
        let mut letter =
            DeadLetter::new(id, group, read.message, reason.unwrap_or(Reason::CrashLoop), dead_at);
        letter.error = match fields.text(headers::DLQ_ERROR) {
            Some(error) => headers::unescape(&error),
            None => SmolStr::new("its consumers died repeatedly, until the broker made it a dead letter"),
        };
        let attempts = fields.number(headers::DLQ_ATTEMPTS).and_then(|n| u32::try_from(n).ok());
        letter.attempts =
            attempts.unwrap_or_else(|| read.facts.attempt.saturating_add(self.client.config.delivery_limit));
        letter.published_at = read.facts.published_at.unwrap_or(dead_at);
        letter.first_attempt_at = read.facts.first_attempt_at.unwrap_or(dead_at);
        Ok((letter, read.facts))
    }
}

fn chosen(letter: &DeadLetter, filter: &DeadLetterFilter) -> bool {
    (filter.ids.is_empty() || filter.ids.contains(&letter.id))
        && filter.group.as_ref().is_none_or(|group| *group == letter.group)
        && filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&letter.message.subject))
        && filter.reason.is_none_or(|reason| reason == letter.reason)
}

/// Returns a value that the broker wrote in `x-death` when it made the message a dead letter.
fn death(properties: &BasicProperties, what: &str) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(first) = deaths.as_slice().first()? else { return None };
    match first.inner().get(what)? {
        AMQPValue::FieldArray(values) => match values.as_slice().first()? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            _ => None,
        },
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    }
}
