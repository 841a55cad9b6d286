//! Settlements of deliveries: sent at once, and confirmed for a caller that awaits one (`double_ack.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::ack_log::AckSeq;
use super::attempts::{self, Attempt};
use super::codec::{ACK, PROGRESS, TERM, nak};
use super::dead_letters::{DeadLettering, DeadLetters};
use super::double_ack::{confirm, send, send_and_confirm};
use super::error::closed;
use super::in_flight::LeasedMessage;
use super::kv;
use super::member::Member;
use super::source::Source;
use event_transport::bounds;
use event_transport::confirm::{Answer, Confirm};
use event_transport::delivery::{Settle, Settlement, Token, lease_lost};
use event_transport::error::Result;

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
            Some(entry) if entry.lease_until > now => (entry.place.source.clone(), entry.ack.clone()),
            _ if self.client.closed.is_cancelled() => {
                return Confirm::ready(Err(closed().during("renew")));
            }
            _ => return Confirm::ready(Err(lease_lost())),
        };
        let seq = send(&self.client, &source, ack.clone(), PROGRESS);
        if let Some(entry) = self.in_flight().get(token) {
            entry.lease_until = now + self.certain();
        }
        self.confirm(source, ack, PROGRESS, seq)
    }
}

impl Member {
    /// Removes a delivery from the messages in flight, to settle it finally (`for_good`) or in several steps.
    fn take(&self, token: Token, for_good: bool) -> Result<LeasedMessage> {
        if self.client.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let mut in_flight = self.in_flight();
        let entry = in_flight.get(token).ok_or_else(lease_lost)?;
        if entry.lease_until <= Instant::now() {
            let entry = in_flight.remove(token).expect("just seen");
            drop((in_flight, entry)); // the server delivers it again
            return Err(lease_lost());
        }
        let entry = in_flight.remove(token).ok_or_else(lease_lost)?;
        if for_good {
            in_flight.remember(&entry.place);
        }
        Ok(entry)
    }

    fn acknowledge(&self, entry: LeasedMessage) -> Confirm<()> {
        let seq = send(&self.client, &entry.place.source, entry.ack.clone(), ACK);
        if entry.recorded {
            self.forget_attempts(&entry);
        }
        self.confirm(entry.place.source, entry.ack, ACK, seq)
    }

    /// Performs retry, reject, release and defer, which take more than one step.
    fn in_steps(&self, entry: LeasedMessage, settlement: Settlement, answer: Answer<()>) {
        let steps = Steps { dead_letters: self.dead_letters.clone(), group: self.group.clone() };
        let busy = self.begin();
        tokio::spawn(async move {
            let rejected = matches!(settlement, Settlement::Reject(_));
            let result = steps.take(&entry, settlement).await;
            if rejected && result.is_ok() {
                busy.0.in_flight().remember(&entry.place);
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
        Confirm::boxed(confirm(self.client.clone(), source, ack, word, seq))
    }

    fn forget_attempts(&self, entry: &LeasedMessage) {
        let subject = attempts::subject(&self.client.names, &entry.place.source, entry.place.sequence);
        let client = self.client.clone();
        let busy = self.begin();
        tokio::spawn(async move {
            // A record that stays is harmless; it is removed with the group.
            let _ = kv::purge(&client, &client.names.state(), &subject).await;
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
struct Steps {
    dead_letters: Arc<DeadLetters>,
    group: event_transport::subject::Group,
}

impl Steps {
    async fn take(&self, entry: &LeasedMessage, settlement: Settlement) -> Result<()> {
        let word = match settlement {
            Settlement::Ack => ACK,
            Settlement::Retry { after, error } => {
                if !after.is_zero() {
                    let due = Timestamp::now().as_millisecond().saturating_add(bounds::signed_millis(after));
                    self.record(entry, entry.info.attempt, due, error).await?;
                }
                nak(after)
            }
            Settlement::Release => self.untried(entry, Duration::ZERO).await?,
            Settlement::Defer { after } => self.untried(entry, after).await?,
            Settlement::Reject(rejection) => {
                let place = &entry.place;
                let dead_lettering = DeadLettering {
                    message: entry.message.clone(),
                    info: entry.info.clone(),
                    first_ms: entry.first_ms,
                    id: format!(
                        "dlq/{}/{}/{}/{}/{}",
                        place.source.stream,
                        place.source.consumer,
                        place.sequence,
                        place.time,
                        entry.delivered
                    ),
                };
                self.dead_letters.store(&self.group, &dead_lettering, rejection).await?;
                TERM
            }
        };
        let settled = word == TERM;
        // Sent once: a second nak would apply to the next delivery.
        let client = &self.dead_letters.client;
        let result = send_and_confirm(client, &entry.place.source, &entry.ack, &word).await;
        if settled && entry.recorded {
            let _ = kv::purge(client, &client.names.state(), &self.record_subject(entry)).await;
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
        Ok(nak(after))
    }

    async fn record(&self, entry: &LeasedMessage, attempts: u32, due: i64, error: SmolStr) -> Result<()> {
        let record = Attempt { delivered: entry.delivered, attempts, due, first: entry.first_ms, error };
        let (subject, headers) = (self.record_subject(entry), async_nats::HeaderMap::new());
        let payload = serde_json::to_vec(&record).expect("plain data");
        self.dead_letters.client.outbound.store(subject, headers, payload.into()).await.map(drop)
    }

    fn record_subject(&self, entry: &LeasedMessage) -> String {
        attempts::subject(&self.dead_letters.client.names, &entry.place.source, entry.place.sequence)
    }
}
