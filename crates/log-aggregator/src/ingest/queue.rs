//! Queues records for the store: a bounded queue whose batches are committed together.
//!
//! All batches that arrive during a commit are part of the next commit: many senders share one fsync, and a single
//! sender waits only for its own. A sender receives a success after the commit, never before.

use std::sync::Arc;

use event_client::log::LogRecord;
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::live::Live;
use crate::store::{LogStore, RecordBatch};

/// Maximum number of queued batches.
const MOST_GROUPS: usize = 8192;
/// Maximum size of the queued records in bytes, by [`LogRecord::weight`].
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Maximum number of batches in one commit.
const COMMIT: usize = 4096;

/// The sending side of the queue; clones use the same queue.
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
    /// Starts the only writer of a store; it ends after [`Ingest::close`], when all queued batches are answered.
    pub(crate) fn start(store: Arc<dyn LogStore>, live: Arc<Live>) -> (Self, JoinHandle<()>) {
        let (sender, waiting) = mpsc::channel(MOST_GROUPS);
        let closing = CancellationToken::new();
        let writer = tokio::spawn(write(waiting, closing.clone(), store, live));
        (Self { waiting: sender, bytes: Arc::new(Semaphore::new(MOST_BYTES)), closing }, writer)
    }

    /// Closes the queue; batches in it are still stored.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Stores a batch; returns when it is durable. Returns an error at once when the queue is full.
    pub(crate) async fn offer(&self, group: RecordBatch) -> Result<()> {
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(weight(&group)).map_err(|_| busy())?;
        let (answer, stored) = oneshot::channel();
        self.waiting.try_send(Waiting { group, answer, _room: room }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        stored.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Stores a batch; waits for space when the queue is full. For senders that can wait.
    pub(crate) async fn push(&self, group: RecordBatch) -> Result<()> {
        let room = Arc::clone(&self.bytes).acquire_many_owned(weight(&group)).await.map_err(|_| closed())?;
        let (answer, stored) = oneshot::channel();
        self.waiting.send(Waiting { group, answer, _room: room }).await.map_err(|_| closed())?;
        stored.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn weight(group: &RecordBatch) -> u32 {
    let bytes: usize = group.records.iter().map(LogRecord::weight).sum();
    // A batch larger than the whole bound has to fit when the queue is empty.
    u32::try_from(bytes.min(MOST_BYTES)).unwrap_or(u32::MAX)
}

fn busy() -> Error {
    Error::new(
        ErrorKind::Busy,
        "too many log records wait to be stored; no record was stored, try again in a second",
    )
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the log aggregator is shutting down; no record was stored")
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
        // A panic in a store must not end the writer: without it, every later record would be refused.
        let stored =
            std::panic::AssertUnwindSafe(store.append(groups)).catch_unwind().await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Unavailable, "storing log records panicked; no record was stored"))
            });
        let outcome = stored.map(|kept| live.push(kept));
        match &outcome {
            // Logged once, not for each refused record: these lines may come back here as records themselves.
            Err(error) if !failing => tracing::error!(error = error.chain(), "log records are refused"),
            Ok(()) if failing => tracing::info!("log records are stored again"),
            _ => {}
        }
        failing = outcome.is_err();
        for (answer, _room) in answers {
            // A sender that was cancelled does not need the answer.
            let _ = answer.send(outcome.clone());
        }
    }
}
