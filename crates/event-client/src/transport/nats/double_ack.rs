//! Confirms acknowledgements on demand. The server processes the acknowledgements that one connection sends to one
//! consumer in order, so they are numbered, and one confirmed acknowledgement (NATS' double ack) proves that all
//! earlier ones were processed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::connection::Connection;
use super::error::{closed, lost};
use super::member::Source;
use crate::error::{Error, ErrorKind, Result};

/// The acknowledgements sent to one consumer.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    sent: AtomicU64,
    /// The incarnation of the connection, and how many acknowledgements the server has confirmed in it.
    confirmed: SyncMutex<(u64, u64)>,
    /// Held while one caller asks for a confirmation; the others wait for its result.
    turn: Mutex<()>,
}

/// The number of an acknowledgement that was sent without a reply subject.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckSeq {
    /// Of the connection: an acknowledgement may be lost with the connection that carried it.
    incarnation: u64,
    number: u64,
}

impl AckLog {
    fn is_confirmed(&self, seq: AckSeq) -> bool {
        let (incarnation, sent) = *self.confirmed();
        incarnation == seq.incarnation && seq.number < sent
    }

    fn confirmed(&self) -> MutexGuard<'_, (u64, u64)> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `word`, the payload of an acknowledgement or a renewal, without requesting a reply.
pub(super) fn send(connection: &Connection, source: &Source, ack: NatsSubject, word: Bytes) -> AckSeq {
    // The incarnation is read before and the number taken after sending: if the connection changes meanwhile, the
    // payload counts as sent over the earlier one, and behind all payloads that were sent at the same time.
    let incarnation = connection.incarnation();
    connection.outbound.send_bare(ack, None, word);
    AckSeq { incarnation, number: source.ack_log.sent.fetch_add(1, Ordering::AcqRel) }
}

/// Resolves when the server has processed a payload that was sent before and that may be sent twice.
pub(super) async fn confirm(
    connection: Arc<Connection>,
    source: Arc<Source>,
    ack: NatsSubject,
    word: Bytes,
    seq: AckSeq,
) -> Result<()> {
    if source.ack_log.is_confirmed(seq) {
        return Ok(());
    }
    let until = Instant::now() + connection.config.request_timeout;
    let turn = timeout_at(until, source.ack_log.turn.lock()).await;
    if source.ack_log.is_confirmed(seq) {
        return Ok(());
    }
    let _turn = turn.map_err(|_| silent())?;
    // Boxed: most callers find the acknowledgement confirmed and never ask.
    Box::pin(ask(&connection, &source, &ack, &word, until)).await
}

/// Sends a payload and resolves when the server has processed it.
pub(super) async fn send_and_confirm(
    connection: &Connection,
    source: &Source,
    ack: &NatsSubject,
    word: &Bytes,
) -> Result<()> {
    ask(connection, source, ack, word, Instant::now() + connection.config.request_timeout).await
}

async fn ask(
    connection: &Connection,
    source: &Source,
    ack: &NatsSubject,
    word: &Bytes,
    until: Instant,
) -> Result<()> {
    loop {
        if connection.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let (incarnation, sent) = (connection.incarnation(), source.ack_log.sent.load(Ordering::Acquire));
        let within = until.max(Instant::now() + Duration::from_millis(1));
        // Through the outbound queue, so that it arrives behind the payloads that were sent before.
        if connection.outbound.ask(ack.clone(), None, word.clone(), within).await?.is_some() {
            if connection.incarnation() == incarnation {
                let mut confirmed = source.ack_log.confirmed();
                *confirmed = (*confirmed).max((incarnation, sent));
            }
            return Ok(());
        }
        // No responders: the consumer was deleted, or JetStream is not ready after a restart.
        match connection.consumer_info(&source.stream, &source.consumer).await {
            Ok(None) => return Err(lost()),
            _ if Instant::now() >= until => return Err(silent()),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment").during("settle")
}
