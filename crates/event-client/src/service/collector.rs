//! Combines single deliveries into batches: each delivery waits in a collector until its batch has been handled.
//!
//! For the worker a batch handler is like any other handler and is called once for each message, so leases, retries,
//! layers and settlements need no second implementation. The messages are combined only inside that call.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use smol_str::SmolStr;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::batch::{Batch, BatchHandler, Item};
use super::extract::{FromPayload, Msg, Route};
use super::handler::{Handler, HandlerOptions};
use super::incoming::Incoming;
use super::outcome::Outcome;
use super::versions::Versions;
use crate::bus::Bus;
use crate::error::Result;
use crate::supervise::panic_text;

/// A handler created by [`BatchHandler::batch`].
pub struct Batching<H: BatchHandler<M, S>, M, S> {
    handler: H,
    max: usize,
    wait: Duration,
    /// Started by the first message; ends when the last clone is dropped.
    collector: Arc<OnceLock<Collector<H::Event>>>,
    _types: PhantomData<fn() -> (M, S)>,
}

struct Collector<E> {
    queue: mpsc::Sender<Pending<E>>,
    _task: AbortOnDropHandle<()>,
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

impl<H: BatchHandler<M, S>, M, S> Batching<H, M, S> {
    pub(super) fn new(handler: H, max: usize, wait: Duration) -> Self {
        Self { handler, max: max.max(1), wait, collector: Arc::default(), _types: PhantomData }
    }
}

/// Marks the argument types of a batch handler, so that they differ from those of a plain handler.
#[derive(Debug)]
pub struct Batched<M>(PhantomData<M>);

impl<H, M, S> Handler<Batched<M>, S> for Batching<H, M, S>
where
    H: BatchHandler<M, S>,
    M: 'static,
    S: Send + Sync + 'static,
{
    fn route(&self) -> Result<Route> {
        Msg::<H::Event>::route()
    }

    fn versions(&self) -> Option<Versions> {
        Msg::<H::Event>::versions()
    }

    fn call(self, incoming: Incoming, state: Arc<S>) -> impl Future<Output = Outcome> + Send + 'static {
        // Decoded before it joins a batch, so that a message that cannot be decoded is settled alone.
        let joined = Msg::<H::Event>::from_payload(&incoming).map(|Msg(event)| {
            let queue = self.collector.get_or_init(|| self.collect(&incoming, state)).queue.clone();
            (queue, Item::new(event, incoming))
        });
        async move {
            let (queue, item) = match joined {
                Ok(joined) => joined,
                Err(error) => return error.into(),
            };
            let (answer, answered) = oneshot::channel();
            if queue.send(Pending { item, answer }).await.is_err() {
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

    fn options(&self) -> HandlerOptions {
        HandlerOptions { concurrency: Some(1), batch: Some(self.max), ..HandlerOptions::default() }
    }
}

impl<H, M, S> Batching<H, M, S>
where
    H: BatchHandler<M, S>,
    M: 'static,
    S: Send + Sync + 'static,
{
    fn collect(&self, first: &Incoming, state: Arc<S>) -> Collector<H::Event> {
        let concurrency = first.handler.concurrency;
        let (queue, pending) = mpsc::channel(self.max * concurrency);
        let gathering = Gathering {
            pending,
            max: self.max,
            wait: self.wait,
            draining: first.handler.draining.clone(),
            slots: Arc::new(Semaphore::new(concurrency)),
        };
        let run = run::<H, M, S>(gathering, self.handler.clone(), first.bus.clone(), state);
        Collector { queue, _task: AbortOnDropHandle::new(tokio::spawn(run)) }
    }
}

/// Collects and runs batches until the service has ended; then the running batches are aborted, because no caller
/// waits for them.
async fn run<H: BatchHandler<M, S>, M, S: Send + Sync + 'static>(
    mut gathering: Gathering<H::Event>,
    handler: H,
    bus: Bus,
    state: Arc<S>,
) {
    let mut running = JoinSet::new();
    while let Some((batch, slot)) = gathering.next().await {
        let (items, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|pending| (pending.item, pending.answer)).unzip();
        let (handler, bus, state) = (handler.clone(), bus.clone(), state.clone());
        let handling = async move { handler.call(Batch(items), bus, state).await };
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

impl<H: BatchHandler<M, S>, M, S> Clone for Batching<H, M, S> {
    fn clone(&self) -> Self {
        Self {
            handler: self.handler.clone(),
            max: self.max,
            wait: self.wait,
            collector: self.collector.clone(),
            _types: PhantomData,
        }
    }
}

impl<H: BatchHandler<M, S>, M, S> fmt::Debug for Batching<H, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batching").field("max", &self.max).field("wait", &self.wait).finish_non_exhaustive()
    }
}
