//! Combines single deliveries into batches: each delivery waits in a collector until its batch has been handled.
//!
//! For the worker a batch handler is like any other handler and is called once for each message, so leases, retries,
//! layers and settlements need no second implementation. The messages are combined only inside that call.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use smol_str::SmolStr;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::items::{Batch, Item};
use crate::service::outcome::Outcome;
use event_transport::supervise::panic_text;

/// The bounds of the batches of one handler.
pub(super) struct Bounds {
    /// The most items of a batch.
    pub(super) max: usize,
    /// The longest wait for further items.
    pub(super) wait: Duration,
    /// The most batches at a time.
    pub(super) concurrency: usize,
    /// Cancelled when the service stops fetching.
    pub(super) draining: CancellationToken,
}

/// A task that collects items and runs their batches. Dropping it aborts the task.
pub(super) struct Collector<E> {
    queue: mpsc::Sender<Pending<E>>,
    _task: AbortOnDropHandle<()>,
}

impl<E: Send + 'static> Collector<E> {
    pub(super) fn start<H, F>(bounds: Bounds, handle: H) -> Self
    where
        H: Fn(Batch<E>) -> F + Clone + Send + 'static,
        F: Future<Output = Vec<Outcome>> + Send + 'static,
    {
        let Bounds { max, wait, concurrency, draining } = bounds;
        let (queue, pending) = mpsc::channel(max * concurrency);
        let slots = Arc::new(Semaphore::new(concurrency));
        let gathering = Gathering { pending, max, wait, draining, slots };
        Self { queue, _task: AbortOnDropHandle::new(tokio::spawn(run(gathering, handle))) }
    }

    pub(super) fn queue(&self) -> Queue<E> {
        Queue(self.queue.clone())
    }
}

/// Adds items to the batches of a collector.
pub(super) struct Queue<E>(mpsc::Sender<Pending<E>>);

impl<E> Queue<E> {
    /// Waits until the batch of this item has been handled, and returns the item's outcome.
    pub(super) async fn handle(self, item: Item<E>) -> Outcome {
        let (answer, answered) = oneshot::channel();
        if self.0.send(Pending { item, answer }).await.is_err() {
            return Outcome::Release;
        }
        match answered.await {
            Ok(Answer::Outcome(outcome)) => outcome,
            // The panic continues in the worker, which counts panics, once for each item.
            Ok(Answer::Panicked(text)) => std::panic::resume_unwind(Box::new(text.to_string())),
            Err(_) => Outcome::Release,
        }
    }
}

/// An item that waits for its batch.
struct Pending<E> {
    item: Item<E>,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Outcome(Outcome),
    Panicked(SmolStr),
}

/// Collects and runs batches until the service has ended; then the running batches are aborted, because no caller
/// waits for them.
async fn run<E, H, F>(mut gathering: Gathering<E>, handle: H)
where
    E: Send + 'static,
    H: Fn(Batch<E>) -> F + Clone + Send + 'static,
    F: Future<Output = Vec<Outcome>> + Send + 'static,
{
    let mut running = JoinSet::new();
    while let Some((batch, slot)) = gathering.next().await {
        let (items, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|pending| (pending.item, pending.answer)).unzip();
        let handle = handle.clone();
        let handling = async move { handle(Batch(items)).await };
        running.spawn(async move {
            let handled = AssertUnwindSafe(handling).catch_unwind().await;
            drop(slot);
            // If no receiver waits for an answer, a layer has cancelled the call; its message is being retried.
            match handled {
                Ok(outcomes) => {
                    for (answer, outcome) in answers.into_iter().zip(outcomes) {
                        let _ = answer.send(Answer::Outcome(outcome));
                    }
                }
                Err(panic) => {
                    let text = panic_text(&*panic);
                    for answer in answers {
                        let _ = answer.send(Answer::Panicked(text.clone()));
                    }
                }
            }
        });
        while running.try_join_next().is_some() {}
    }
}

struct Gathering<E> {
    pending: mpsc::Receiver<Pending<E>>,
    max: usize,
    wait: Duration,
    draining: CancellationToken,
    slots: Arc<Semaphore>,
}

impl<E> Gathering<E> {
    /// Returns the next batch with its slot; `None` when no further message can arrive.
    async fn next(&mut self) -> Option<(Vec<Pending<E>>, tokio::sync::OwnedSemaphorePermit)> {
        loop {
            let mut batch = Vec::new();
            if self.pending.recv_many(&mut batch, self.max).await == 0 {
                return None;
            }
            let over = tokio::time::sleep(self.wait);
            tokio::pin!(over);
            while batch.len() < self.max {
                let room = self.max - batch.len();
                tokio::select! {
                    biased;
                    more = self.pending.recv_many(&mut batch, room) => if more == 0 { break },
                    () = &mut over => break,
                    // No further message is fetched, so waiting would only delay the end.
                    () = self.draining.cancelled() => break,
                }
            }
            let slot = self.slots.clone().acquire_owned().await.expect("the slots are never closed");
            // Drops the items whose calls a layer has cancelled, and adds the items that arrived while all slots were
            // taken.
            batch.retain(|pending| !pending.answer.is_closed());
            while batch.len() < self.max
                && let Ok(pending) = self.pending.try_recv()
            {
                batch.push(pending);
            }
            if !batch.is_empty() {
                return Some((batch, slot));
            }
        }
    }
}
