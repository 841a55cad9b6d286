//! Settlements of deliveries: sent at once, and confirmed for a caller that awaits one (`double_ack.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::time::Instant;

use super::connection::Connection;
use super::dead_letters;
use super::double_ack::{AckSeq, confirm, send, send_and_confirm};
use super::error::{closed, lost};
use super::member::{LeasedMessage, Member, Source};
use crate::bounds;
use crate::confirm::{Answer, Confirm};
use crate::delivery::{Settle, Settlement, Token};
use crate::error::Result;

pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(super) const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
const TERM: Bytes = Bytes::from_static(b"+TERM");
const NAK: Bytes = Bytes::from_static(b"-NAK");

/// The stored attempts of a message that is delivered again: the server's delivery count does not exclude releases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// Delivery count when this was written.
    pub(super) delivered: u64,
    /// Number of these deliveries that count as attempts.
    pub(super) attempts: u32,
    /// Unix milliseconds of the next attempt; 0 means at once.
    #[serde(default)]
    pub(super) due: i64,
    /// Unix milliseconds of the first attempt.
    #[serde(default)]
    pub(super) first: i64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) error: SmolStr,
}

impl Settle for Member {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        // Counted before the message stops being in flight, because the member might look idle in between.
        let _busy = self.begin();
        let entry = match self.take(token, matches!(settlement, Settlement::Ack)) {
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
        let (source, ack) = match self.in_flight().get(token) {
            Some(entry) if entry.lease_until > now => (entry.source.clone(), entry.ack.clone()),
            _ if self.connection.closed.is_cancelled() => {
                return Confirm::ready(Err(closed().during("renew")));
            }
            _ => return Confirm::ready(Err(lost())),
        };
        let seq = send(&self.connection, &source, ack.clone(), PROGRESS);
        if let Some(entry) = self.in_flight().get(token) {
            entry.lease_until = now + self.certain();
        }
        self.confirm(source, ack, PROGRESS, seq)
    }
}

impl Member {
    /// Removes a delivery from the messages in flight, to settle it finally (`for_good`) or in several steps.
    fn take(&self, token: Token, for_good: bool) -> Result<LeasedMessage> {
        if self.connection.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let mut in_flight = self.in_flight();
        let entry = in_flight.get(token).ok_or_else(lost)?;
        if entry.lease_until <= Instant::now() {
            let entry = in_flight.remove(token).expect("just seen");
            drop((in_flight, entry)); // the server delivers it again
            return Err(lost());
        }
        let entry = in_flight.remove(token).ok_or_else(lost)?;
        if for_good {
            in_flight.remember(&entry.source, entry.sequence, entry.time);
        }
        Ok(entry)
    }

    fn acknowledge(&self, entry: LeasedMessage) -> Confirm<()> {
        let seq = send(&self.connection, &entry.source, entry.ack.clone(), ACK);
        if entry.recorded {
            self.forget_attempts(&entry);
        }
        self.confirm(entry.source, entry.ack, ACK, seq)
    }

    /// Performs retry, reject, release and defer, which take more than one step.
    fn in_steps(&self, entry: LeasedMessage, settlement: Settlement, answer: Answer<()>) {
        let steps = Steps { connection: self.connection.clone(), group: self.group.clone() };
        let busy = self.begin();
        tokio::spawn(async move {
            let rejected = matches!(settlement, Settlement::Reject(_));
            let result = steps.take(&entry, settlement).await;
            if rejected && result.is_ok() {
                busy.0.in_flight().remember(&entry.source, entry.sequence, entry.time);
            }
            let _ = answer.send(result.map_err(|error| error.during("settle")));
            drop(busy);
        });
    }

    /// Resolves when the server has processed the payload `word` that was sent before.
    pub(super) fn confirm(
        &self,
        source: Arc<Source>,
        ack: NatsSubject,
        word: Bytes,
        seq: AckSeq,
    ) -> Confirm<()> {
        Confirm::boxed(confirm(self.connection.clone(), source, ack, word, seq))
    }

    fn forget_attempts(&self, entry: &LeasedMessage) {
        let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
        let connection = self.connection.clone();
        let busy = self.begin();
        tokio::spawn(async move {
            // A record that stays is harmless; it is removed with the group.
            let _ = connection.purge(&connection.names.state(), &subject).await;
            drop(busy);
        });
    }

    fn begin(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(self.this())
    }

    fn this(&self) -> Arc<Self> {
        self.me.upgrade().expect("a caller that settles holds the member")
    }
}

/// Counts a settlement while its steps are in progress.
struct Busy(Arc<Member>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// The data for a settlement of several steps.
pub(super) struct Steps {
    pub(super) connection: Arc<Connection>,
    pub(super) group: crate::subject::Group,
}

impl Steps {
    pub(super) async fn take(&self, entry: &LeasedMessage, settlement: Settlement) -> Result<()> {
        let word = match settlement {
            Settlement::Ack => ACK,
            Settlement::Retry { after, error } => {
                if !after.is_zero() {
                    let due = Timestamp::now().as_millisecond().saturating_add(bounds::signed_millis(after));
                    self.record(entry, entry.info.attempt, due, error).await?;
                }
                delayed(after)
            }
            Settlement::Release => self.untried(entry, Duration::ZERO).await?,
            Settlement::Defer { after } => self.untried(entry, after).await?,
            Settlement::Reject(rejection) => {
                let dead_lettering = dead_letters::DeadLettering {
                    message: entry.message.clone(),
                    info: entry.info.clone(),
                    first_ms: entry.first_ms,
                    id: format!(
                        "dlq/{}/{}/{}/{}/{}",
                        entry.source.stream,
                        entry.source.consumer,
                        entry.sequence,
                        entry.time,
                        entry.delivered
                    ),
                };
                dead_letters::dead_letter(&self.connection, &self.group, &dead_lettering, rejection).await?;
                TERM
            }
        };
        let settled = word == TERM;
        // Sent once: a second nak would apply to the next delivery.
        let result = send_and_confirm(&self.connection, &entry.source, &entry.ack, &word).await;
        if settled && entry.recorded {
            let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
            let _ = self.connection.purge(&self.connection.names.state(), &subject).await;
        }
        result
    }

    /// Records that the last delivery was not an attempt. Returns the payload that gives the message back for
    /// `after`.
    async fn untried(&self, entry: &LeasedMessage, after: Duration) -> Result<Bytes> {
        let now = Timestamp::now().as_millisecond();
        let due = if after.is_zero() { 0 } else { now.saturating_add(bounds::signed_millis(after)) };
        let before = entry.info.attempt.saturating_sub(1);
        self.record(entry, before, due, SmolStr::default()).await?;
        Ok(delayed(after))
    }

    async fn record(&self, entry: &LeasedMessage, attempts: u32, due: i64, error: SmolStr) -> Result<()> {
        let record = Attempt { delivered: entry.delivered, attempts, due, first: entry.first_ms, error };
        let subject = self.connection.attempt_subject(&entry.source, entry.sequence);
        let payload = serde_json::to_vec(&record).expect("plain data");
        self.connection.outbound.store(subject, async_nats::HeaderMap::new(), payload.into()).await.map(drop)
    }
}

pub(super) fn delayed(after: Duration) -> Bytes {
    if after.is_zero() {
        return NAK;
    }
    format!("-NAK {{\"delay\": {}}}", bounds::signed_nanos(after)).into()
}

impl Connection {
    /// Returns the subject of a message's stored attempts.
    pub(super) fn attempt_subject(&self, source: &Source, sequence: u64) -> String {
        format!("{}{sequence}", self.attempts_of(source))
    }

    /// Returns the prefix of the subjects of the stored attempts of a consumer's messages.
    pub(super) fn attempts_of(&self, source: &Source) -> String {
        self.names.record("attempt", &format!("{}.{}.", source.consumer, source.stream))
    }
}
