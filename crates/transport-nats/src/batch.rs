//! Atomic batches: messages for one topic that wait while the last batch is being stored form the next one.
//!
//! Used only where the servers fsync each message (`sync=always`) and support atomic batches (2.12): a batch costs as
//! many fsyncs as a few single messages, so a window of publishes shares them. One batch of a topic is in flight at a
//! time, which keeps the order. A refused batch has stored nothing, so its messages are sent again one by one, each
//! with its own outcome. When the server does not confirm a batch, its outcome is unknown, and each publisher
//! receives an error.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Subject as NatsSubject};
use smol_str::SmolStr;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::ApiError;
use super::client::Client;
use super::codec;
use super::pub_ack::{Ack, Outgoing, PendingPublish};
use event_transport::Receipt;
use event_transport::confirm::Confirm;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::{Message, Position};
use event_transport::sync::lock;

/// Smallest batch. Fewer messages are stored faster one by one, because a batch takes about four fsyncs.
const LEAST: usize = 4;
/// Largest number of messages in a batch; servers accept 1000.
const MOST: usize = 500;
/// Largest payload bytes of a batch. Its first message may be larger.
const MOST_BYTES: usize = 4 << 20;
/// Time for which messages are sent singly after a batch was refused.
const REST: std::time::Duration = std::time::Duration::from_secs(5);

/// A message that waits to be stored, in a batch or singly.
pub(super) struct Item {
    pub(super) subject: NatsSubject,
    pub(super) headers: HeaderMap,
    pub(super) message: Message,
    pub(super) answer: PendingPublish,
    pub(super) deadline: Instant,
}

/// The waiting messages, by topic.
pub(super) struct Batches {
    client: Arc<Client>,
    /// Receives each message of a batch for which there was no responder.
    resend: Box<dyn Fn(Outgoing) + Send + Sync>,
    lines: Mutex<HashMap<SmolStr, Line>>,
    /// Notified when a line has ended; `idle` waits for it while the connection closes.
    done: Notify,
}

/// The queue of a topic in which messages are being stored.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Item>,
    /// No batches are sent before this time.
    rest: Option<Instant>,
}

/// The server's reply to a batch.
enum BatchReply {
    /// The batch is stored; the last message has this sequence.
    Stored(u64),
    /// Nothing of the batch is stored.
    Refused(ApiError),
    /// No responder received the commit.
    Nobody,
}

impl Batches {
    fn lines(&self) -> MutexGuard<'_, HashMap<SmolStr, Line>> {
        lock(&self.lines)
    }

    pub(super) fn new(client: &Arc<Client>, resend: Box<dyn Fn(Outgoing) + Send + Sync>) -> Arc<Self> {
        let (client, lines, done) = (client.clone(), Mutex::default(), Notify::new());
        Arc::new(Self { client, resend, lines, done })
    }

    /// Stores a message after all earlier messages of its topic.
    pub(super) fn publish(self: &Arc<Self>, item: Item) {
        let topic = item.message.subject.topic();
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(topic) {
            line.waiting.push_back(item);
            return;
        }
        let topic = SmolStr::new(topic);
        lines.insert(topic.clone(), Line { waiting: VecDeque::from([item]), rest: None });
        drop(lines);
        let batches = self.clone();
        self.client.vital("nats batches", async move {
            tokio::select! {
                () = batches.store_line(&topic) => {}
                // The dropped answers report an unknown outcome to the publishers.
                () = batches.client.closed.cancelled() => drop(batches.lines().remove(&topic)),
            }
            batches.done.notify_waiters();
        });
    }

    /// Drops all waiting messages; their publishers receive an error that the connection is closed.
    pub(super) fn abandon(&self) {
        self.lines().clear();
        self.done.notify_waiters();
    }

    /// Waits until no message waits or is in flight.
    pub(super) async fn idle(&self) {
        loop {
            let mut done = std::pin::pin!(self.done.notified());
            done.as_mut().enable();
            if self.lines().is_empty() {
                return;
            }
            done.await;
        }
    }

    /// Returns the next messages and whether they form a batch. Returns `None` when the line has ended.
    fn next(&self, topic: &str) -> Option<(Vec<Item>, bool)> {
        let mut lines = self.lines();
        let line = lines.get_mut(topic)?;
        if line.waiting.is_empty() {
            // Removed under the lock: the next publish starts a new line.
            lines.remove(topic);
            return None;
        }
        let resting = line.rest.is_some_and(|rest| Instant::now() < rest);
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(next) = line.waiting.front()
            && items.len() < MOST
            && (items.is_empty() || bytes + next.message.payload.len() <= MOST_BYTES)
        {
            // Not every server with atomic batches accepts a dedup id inside them.
            if next.message.dedup && !items.is_empty() {
                break;
            }
            bytes += next.message.payload.len();
            let alone = next.message.dedup;
            items.extend(line.waiting.pop_front());
            if alone {
                break;
            }
        }
        let batch = items.len() >= LEAST && !resting;
        Some((items, batch))
    }

    fn rest(&self, topic: &str) {
        if let Some(line) = self.lines().get_mut(topic) {
            line.rest = Some(Instant::now() + REST);
        }
    }

    /// Stores the waiting messages of a topic until none is left.
    async fn store_line(&self, topic: &str) {
        // Yields once, so that a publisher can queue a whole window of messages first.
        tokio::task::yield_now().await;
        while let Some((items, batch)) = self.next(topic) {
            if batch {
                self.store_batch(topic, items).await;
            } else {
                self.store_singly(items).await;
            }
        }
    }

    /// Publishes each message on its own, in order, and waits until the last one is confirmed or has failed.
    async fn store_singly(&self, items: Vec<Item>) {
        let mut waiting: Vec<(PendingPublish, Confirm<Receipt>)> = Vec::with_capacity(items.len());
        for item in items {
            let (answer, confirm) = PendingPublish::free();
            waiting.push((item.answer, confirm));
            self.client.outbound.publish(item.subject, item.headers, item.message, answer, item.deadline);
        }
        for (answer, confirm) in waiting {
            answer.send(confirm.await);
        }
    }

    async fn store_batch(&self, topic: &str, items: Vec<Item>) {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let count = items.len();
        let deadline = items.iter().map(|item| item.deadline).min().expect("not empty");
        let mut commit = None;
        for (at, item) in items.iter().enumerate() {
            let mut headers = item.headers.clone();
            codec::put(&mut headers, "Nats-Batch-Id", &id);
            codec::put(&mut headers, "Nats-Batch-Sequence", &(at + 1).to_string());
            let payload = item.message.payload.clone();
            if at + 1 < count {
                let subject = item.subject.clone();
                self.client.outbound.send(OutboundMessage {
                    subject,
                    reply: None,
                    payload,
                    headers: Some(headers),
                });
            } else {
                codec::put(&mut headers, "Nats-Batch-Commit", "1");
                let subject = item.subject.clone();
                commit = Some(self.client.outbound.ask(subject, Some(headers), payload, deadline));
            }
        }
        let outcome = outcome(commit.expect("there is a last one").await, count);
        match outcome {
            Ok(BatchReply::Stored(last)) => {
                for (back, item) in (0..count as u64).zip(items.into_iter().rev()) {
                    let position = Some(Position(u128::from(last - back)));
                    item.answer.send(Ok(Receipt { position, duplicate: false }));
                }
            }
            Ok(BatchReply::Nobody) => {
                for item in items {
                    let Item { message, answer, deadline, .. } = item;
                    (self.resend)(Outgoing { message, answer, deadline });
                }
            }
            Ok(BatchReply::Refused(error)) => {
                tracing::debug!(%error, topic, count, "a batch was refused; its messages are sent one by one");
                self.rest(topic);
                self.store_singly(items).await;
            }
            Err(error) => {
                for item in items {
                    let copy = Error::new(error.kind(), error.to_string());
                    item.answer.send(Err(copy.with("subject", &item.message.subject)));
                }
            }
        }
    }
}

/// Reads the reply to a commit. The outcome is unknown when the reply does not confirm the whole batch or refuse it.
fn outcome(answer: Result<Option<async_nats::Message>>, count: usize) -> Result<BatchReply> {
    let Some(reply) = answer? else { return Ok(BatchReply::Nobody) };
    let ack: Ack = serde_json::from_slice(&reply.payload).map_err(|error| {
        Error::new(ErrorKind::Internal, "the server's confirmation could not be parsed").because(error)
    })?;
    match ack {
        Ack { error: Some(error), .. } => Ok(BatchReply::Refused(error)),
        // A server without atomic batches has stored each message and confirms only the last one.
        Ack { seq, count: stored, .. } if stored == count && seq >= count as u64 => {
            Ok(BatchReply::Stored(seq))
        }
        _ => Err(Error::new(
            ErrorKind::Internal,
            "the server confirmed less than the whole batch; the outcome is unknown",
        )),
    }
}
