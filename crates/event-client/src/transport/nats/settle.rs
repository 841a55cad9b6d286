//! Settling: the server is told at once; who wants to be sure waits for one more word that stands for many.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connection::Connection;
use super::dead;
use super::error::{closed, lost};
use super::member::{Entry, Member, Source};
use crate::confirm::{Answer, Confirm};
use crate::delivery::{Settle, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};

pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(super) const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
const TERM: Bytes = Bytes::from_static(b"+TERM");
const NAK: Bytes = Bytes::from_static(b"-NAK");

/// A settlement that somebody wants to be sure of. Said with a reply subject, it is confirmed behind everything that
/// was said to the same consumer before it.
pub(super) struct Doubt {
    source: Arc<Source>,
    ack: NatsSubject,
    word: Bytes,
    /// It was said already, without a reply subject, and may be said again.
    said: bool,
    answer: Answer<()>,
}

/// What is on record of a message that comes again: the delivery count alone does not know of releases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// Deliveries when this was written.
    pub(super) delivered: u64,
    /// Attempts that count among them.
    pub(super) attempts: u32,
    /// Unix milliseconds of the next try; 0 is at once.
    #[serde(default)]
    pub(super) due: i64,
    /// Unix milliseconds of the first try.
    #[serde(default)]
    pub(super) first: i64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) error: SmolStr,
}

impl Settle for Member {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        // Counted before it leaves the hand, or the member might look idle in between.
        let _busy = self.begin();
        let entry = match self.take(token) {
            Ok(entry) => entry,
            Err(error) => return Confirm::ready(Err(error)),
        };
        match settlement {
            Settlement::Ack => self.acknowledge(entry),
            other => {
                let (answer, confirm) = Confirm::channel();
                self.in_steps(entry, other, answer);
                confirm
            }
        }
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        let now = Instant::now();
        let (source, ack) = match self.hand().get(token) {
            Some(entry) if entry.lease_until > now => (entry.source.clone(), entry.ack.clone()),
            _ if self.connection.closed.is_cancelled() => {
                return Confirm::ready(Err(closed().during("renew")));
            }
            _ => return Confirm::ready(Err(lost())),
        };
        self.connection.courier.say(ack.clone(), None, PROGRESS);
        if let Some(entry) = self.hand().get(token) {
            entry.lease_until = now + self.certain();
        }
        self.sure(source, ack, PROGRESS)
    }
}

impl Member {
    /// Takes a delivery out of the hand.
    fn take(&self, token: Token) -> Result<Entry> {
        if self.connection.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let mut hand = self.hand();
        let entry = hand.get(token).ok_or_else(lost)?;
        if entry.lease_until <= Instant::now() {
            let entry = hand.remove(token).expect("just seen");
            drop((hand, entry)); // it comes again
            return Err(lost());
        }
        hand.remove(token).ok_or_else(lost)
    }

    fn acknowledge(&self, entry: Entry) -> Confirm<()> {
        let connection = &self.connection;
        self.hand().remember(&entry.source, entry.sequence);
        connection.courier.say(entry.ack.clone(), None, ACK);
        if entry.recorded {
            self.forget_attempts(&entry);
        }
        self.sure(entry.source, entry.ack, ACK)
    }

    /// Retry, reject and release take more than one step.
    fn in_steps(&self, entry: Entry, settlement: Settlement, answer: Answer<()>) {
        let steps = Steps {
            connection: self.connection.clone(),
            group: self.group.clone(),
            doubts: self.doubts.clone(),
        };
        let busy = self.begin();
        tokio::spawn(async move {
            let rejected = matches!(settlement, Settlement::Reject(_));
            let result = steps.take(&entry, settlement).await;
            if rejected && result.is_ok() {
                busy.0.hand().remember(&entry.source, entry.sequence);
            }
            let _ = answer.send(result.map_err(|error| error.during("settle")));
            drop(busy);
        });
    }

    /// Resolves when the server has processed what was said to this consumer so far.
    pub(super) fn sure(&self, source: Arc<Source>, ack: NatsSubject, word: Bytes) -> Confirm<()> {
        let doubts = self.doubts.clone();
        Confirm::boxed(sure(doubts, source, ack, word, true))
    }

    fn forget_attempts(&self, entry: &Entry) {
        let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
        let connection = self.connection.clone();
        let busy = self.begin();
        tokio::spawn(async move {
            // Left behind it harms nobody; the group's deletion takes it along.
            let _ = connection.purge(&connection.names.state(), &subject).await;
            drop(busy);
        });
    }

    fn begin(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(self.this())
    }

    fn this(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever settles holds it")
    }
}

/// Counted while a settlement takes its steps.
struct Busy(Arc<Member>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

async fn sure(
    doubts: mpsc::UnboundedSender<Doubt>,
    source: Arc<Source>,
    ack: NatsSubject,
    word: Bytes,
    said: bool,
) -> Result<()> {
    let (answer, waiting) = oneshot::channel();
    doubts.send(Doubt { source, ack, word, said, answer }).map_err(|_| closed().during("settle"))?;
    waiting.await.unwrap_or_else(|_| Err(closed().during("settle")))
}

/// What a settlement of several steps needs.
pub(super) struct Steps {
    pub(super) connection: Arc<Connection>,
    pub(super) group: crate::subject::Group,
    pub(super) doubts: mpsc::UnboundedSender<Doubt>,
}

impl Steps {
    pub(super) async fn take(&self, entry: &Entry, settlement: Settlement) -> Result<()> {
        let word = match settlement {
            Settlement::Ack => ACK,
            Settlement::Retry { after, error } => {
                if !after.is_zero() {
                    let due = Timestamp::now().as_millisecond().saturating_add(millis(after));
                    self.record(entry, entry.info.attempt, due, error).await?;
                }
                delayed(after)
            }
            Settlement::Release => {
                let before = entry.info.attempt.saturating_sub(1);
                self.record(entry, before, 0, SmolStr::default()).await?;
                NAK
            }
            Settlement::Reject(rejection) => {
                let burial = dead::Burial {
                    message: entry.message.clone(),
                    info: entry.info.clone(),
                    first_ms: entry.first_ms,
                    id: format!(
                        "dlq/{}/{}/{}/{}",
                        entry.source.stream, entry.source.consumer, entry.sequence, entry.delivered
                    ),
                };
                dead::bury(&self.connection, &self.group, &burial, rejection).await?;
                TERM
            }
        };
        let settled = word == TERM;
        // Said once: a second refusal would hit the next delivery.
        let result = sure(self.doubts.clone(), entry.source.clone(), entry.ack.clone(), word, false).await;
        if settled && entry.recorded {
            let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
            let _ = self.connection.purge(&self.connection.names.state(), &subject).await;
        }
        result
    }

    async fn record(&self, entry: &Entry, attempts: u32, due: i64, error: SmolStr) -> Result<()> {
        let record = Attempt { delivered: entry.delivered, attempts, due, first: entry.first_ms, error };
        let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
        let payload = serde_json::to_vec(&record).expect("plain data");
        self.connection.courier.store(subject, async_nats::HeaderMap::new(), payload.into()).await.map(drop)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn delayed(after: Duration) -> Bytes {
    if after.is_zero() {
        return NAK;
    }
    format!("-NAK {{\"delay\": {}}}", super::api::nanos(after).min(i64::MAX as u64)).into()
}

/// Confirms settlements, many with one question: the server processes what one connection says to one consumer in
/// order.
pub(super) async fn confirm(connection: Weak<Connection>, mut doubts: mpsc::UnboundedReceiver<Doubt>) {
    let mut batch: Vec<Doubt> = Vec::new();
    while doubts.recv_many(&mut batch, 4096).await > 0 {
        let Some(connection) = connection.upgrade() else { return };
        while !batch.is_empty() {
            let source = batch[0].source.clone();
            let (same, rest): (Vec<_>, Vec<_>) =
                batch.drain(..).partition(|doubt| Arc::ptr_eq(&doubt.source, &source));
            batch = rest;
            let (last, before) = same.split_last().expect("the first is among them");
            for doubt in before.iter().filter(|doubt| !doubt.said) {
                connection.courier.say(doubt.ack.clone(), None, doubt.word.clone());
            }
            let result = confirm_one(&connection, last).await;
            for doubt in same.into_iter().rev() {
                let result = match &result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(Error::new(error.kind(), error.to_string())),
                };
                let _ = doubt.answer.send(result);
            }
        }
    }
}

async fn confirm_one(connection: &Connection, doubt: &Doubt) -> Result<()> {
    let until = Instant::now() + connection.config.request_timeout;
    loop {
        let within = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        // Through the courier: what was said before must be before it.
        let question =
            connection.courier.ask(doubt.ack.clone(), None, doubt.word.clone(), Instant::now() + within);
        if question.await?.is_some() {
            return Ok(());
        }
        // The consumer is gone, or JetStream is not ready after a restart.
        match connection.consumer_info(&doubt.source.stream, &doubt.source.consumer).await {
            Ok(None) => return Err(lost()),
            _ if Instant::now() >= until => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the server's JetStream does not answer just now",
                )
                .during("settle"));
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Connection {
    /// Where the attempts of a message are on record.
    pub(super) fn attempt_subject(&self, source: &Source, sequence: u64) -> String {
        format!("{}{sequence}", self.attempts_of(source))
    }

    /// What stands in front of the record of every message of a consumer.
    pub(super) fn attempts_of(&self, source: &Source) -> String {
        self.names.record("attempt", &format!("{}.{}.", source.consumer, source.stream))
    }
}
