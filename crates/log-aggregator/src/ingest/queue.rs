//! The way into the store: a bounded queue whose records wait together for one commit.
//!
//! Whatever arrives while a commit runs is the next commit: many senders share one fsync, one alone waits for
//! its own only. A sender hears "stored" after the commit, never before.

use std::sync::Arc;

use event_client::log::LogRecord;
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::live::Live;
use crate::store::{LogStore, RecordBatch};

/// Groups that may wait at once.
const MOST_GROUPS: usize = 8192;
/// Bytes that may wait at once, by [`LogRecord::weight`].
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Groups in one commit.
const COMMIT: usize = 4096;

/// Takes records in; clones feed the same queue.
#[derive(Clone, Debug)]
pub(crate) struct Ingest {
    waiting: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    closing: CancellationToken,
}

struct Waiting {
    group: RecordBatch,
    answer: oneshot::Sender<Result<()>>,
    _room: OwnedSemaphorePermit,
}

impl Ingest {
    /// Starts the one writer of a store; it ends after [`Ingest::close`], when all that waited is answered.
    pub(crate) fn start(store: Arc<dyn LogStore>, live: Arc<Live>) -> (Self, JoinHandle<()>) {
        let (sender, waiting) = mpsc::channel(MOST_GROUPS);
        let closing = CancellationToken::new();
        let writer = tokio::spawn(write(waiting, closing.clone(), store, live));
        (Self { waiting: sender, bytes: Arc::new(Semaphore::new(MOST_BYTES)), closing }, writer)
    }

    /// Takes nothing more; what waits is still stored.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Keeps a group; returns when it is durable. Refuses at once when the queue is full.
    pub(crate) async fn offer(&self, group: RecordBatch) -> Result<()> {
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(weight(&group)).map_err(|_| busy())?;
        let (answer, stored) = oneshot::channel();
        self.waiting.try_send(Waiting { group, answer, _room: room }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        stored.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Keeps a group; waits for room when the queue is full. For senders that can wait.
    pub(crate) async fn push(&self, group: RecordBatch) -> Result<()> {
        let room = Arc::clone(&self.bytes).acquire_many_owned(weight(&group)).await.map_err(|_| closed())?;
        let (answer, stored) = oneshot::channel();
        self.waiting.send(Waiting { group, answer, _room: room }).await.map_err(|_| closed())?;
        stored.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn weight(group: &RecordBatch) -> u32 {
    let bytes: usize = group.records.iter().map(LogRecord::weight).sum();
    // A group that alone is larger than the whole room has to fit when nothing else waits.
    u32::try_from(bytes.min(MOST_BYTES)).unwrap_or(u32::MAX)
}

fn busy() -> Error {
    Error::new(
        ErrorKind::Busy,
        "too many log records wait to be stored; nothing was taken, try again in a second",
    )
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the log aggregator is shutting down; nothing was taken")
}

async fn write(
    mut waiting: mpsc::Receiver<Waiting>,
    closing: CancellationToken,
    store: Arc<dyn LogStore>,
    live: Arc<Live>,
) {
    let mut batch = Vec::with_capacity(COMMIT);
    let mut failing = false;
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut batch, COMMIT) => if count == 0 { return },
            () = closing.cancelled(), if !waiting.is_closed() => {
                waiting.close();
                continue;
            }
        }
        let mut answers = Vec::with_capacity(batch.len());
        let mut groups = Vec::with_capacity(batch.len());
        for Waiting { group, answer, _room } in batch.drain(..) {
            groups.push(group);
            answers.push((answer, _room));
        }
        // A panic in a store must not end the writer: it would refuse everything from then on.
        let stored =
            std::panic::AssertUnwindSafe(store.append(groups)).catch_unwind().await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Unavailable, "storing log records panicked; nothing was taken"))
            });
        let outcome = stored.map(|kept| live.push(kept));
        match &outcome {
            // Once, not per refused record: these lines may come back here as records themselves.
            Err(error) if !failing => tracing::error!(error = error.chain(), "log records are refused"),
            Ok(()) if failing => tracing::info!("log records are stored again"),
            _ => {}
        }
        failing = outcome.is_err();
        for (answer, _room) in answers {
            // A sender that went away has not asked to be told.
            let _ = answer.send(outcome.clone());
        }
    }
}
