//! Who wants to be sure that the server has taken a settlement. It processes what one connection says to one consumer in
//! order, so what is said is numbered, and the answer to one question settles all that was said before it.

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

/// What was said to a consumer.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    words: AtomicU64,
    /// In which incarnation of the connection how many words are known to have arrived.
    arrived: SyncMutex<(u64, u64)>,
    /// One asks, the others wait for what is answered.
    turn: Mutex<()>,
}

/// A word that was said without asking back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    /// Of the connection: what is said may be lost with its own.
    incarnation: u64,
    number: u64,
}

impl Spoken {
    fn has_arrived(&self, said: Said) -> bool {
        let (incarnation, words) = *self.arrived();
        incarnation == said.incarnation && said.number < words
    }

    fn arrived(&self) -> MutexGuard<'_, (u64, u64)> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says a word without asking back.
pub(super) fn say(connection: &Connection, source: &Source, ack: NatsSubject, word: Bytes) -> Said {
    // Before and after: it counts as said over the earlier connection, and behind whatever is said meanwhile.
    let incarnation = connection.incarnation();
    connection.courier.say(ack, None, word);
    Said { incarnation, number: source.spoken.words.fetch_add(1, Ordering::AcqRel) }
}

/// Resolves when the server has processed a word that may be said twice.
pub(super) async fn sure(
    connection: Arc<Connection>,
    source: Arc<Source>,
    ack: NatsSubject,
    word: Bytes,
    said: Said,
) -> Result<()> {
    if source.spoken.has_arrived(said) {
        return Ok(());
    }
    let until = Instant::now() + connection.config.request_timeout;
    let turn = timeout_at(until, source.spoken.turn.lock()).await;
    if source.spoken.has_arrived(said) {
        return Ok(());
    }
    let _turn = turn.map_err(|_| silent())?;
    // Boxed, for nearly all of those who settle never ask.
    Box::pin(ask(&connection, &source, &ack, &word, until)).await
}

/// Says a word, and resolves when the server has processed it.
pub(super) async fn tell(
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
        let (incarnation, words) = (connection.incarnation(), source.spoken.words.load(Ordering::Acquire));
        let within = until.max(Instant::now() + Duration::from_millis(1));
        // Through the courier: what was said before must be before it.
        if connection.courier.ask(ack.clone(), None, word.clone(), within).await?.is_some() {
            if connection.incarnation() == incarnation {
                let mut arrived = source.spoken.arrived();
                *arrived = (*arrived).max((incarnation, words));
            }
            return Ok(());
        }
        // The consumer is gone, or JetStream is not ready after a restart.
        match connection.consumer_info(&source.stream, &source.consumer).await {
            Ok(None) => return Err(lost()),
            _ if Instant::now() >= until => return Err(silent()),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "the server's JetStream does not answer just now").during("settle")
}
