//! How single deliveries become batches: each waits at a collector until its batch has been handled.
//!
//! To the worker a batch handler is a handler like any other, called once a message, so leases, retries, layers and
//! settling need no second form. Only behind the call do the messages meet.

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
use super::worker::panic_text;
use crate::bus::Bus;
use crate::error::Result;

/// A handler made by [`BatchHandler::batch`].
pub struct Batching<H: BatchHandler<M, S>, M, S> {
    handler: H,
    max: usize,
    wait: Duration,
    /// Started by the first message; ends with the last clone.
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

/// Marks the argument types of a batch handler, so that they cannot be taken for a plain handler's.
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
        // Decoded before it joins a batch: what does not decode is settled alone.
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
                // Goes on in the worker, where panics are counted, once for each item.
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

/// Gathers and runs batches until the service is gone; then what still runs is aborted, as nobody waits for it.
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
            // An answer that nobody waits for was given up by a layer; its message is being retried.
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
    /// The next batch with its slot; `None` when no message can come any more.
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
                    // Nothing new is fetched, so waiting would only hold up the end.
                    () = self.draining.cancelled() => break,
                }
            }
            let slot = self.slots.clone().acquire_owned().await.expect("the slots are never closed");
            // What came while all slots were taken goes along, and what a layer gave up on stays behind.
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
