//! Batch handlers: plain async functions whose last argument is a [`Batch`].

mod collector;
mod items;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use collector::{Bounds, Collector};
pub use items::{Batch, Item};

use super::extract::{FromPayload, FromRef, Msg, State};
use super::handler::{Handler, HandlerOptions};
use super::incoming::Incoming;
use super::outcome::{IntoOutcome, Outcome};
use super::route::Route;
use super::versions::Versions;
use crate::bus::Bus;
use crate::event::Event;
use event_transport::error::Result;

/// The return type of a batch handler: one outcome for all items (`()`, [`Outcome`]), or a `Vec<Outcome>` with one
/// outcome for each item in their order, or a `Result` of either with any error.
///
/// A vector of another length is a defect of the handler: every item is retried, and the error text reports the
/// defect.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not something a batch handler can return",
    note = "return `()`, `Outcome` or `Vec<Outcome>` (one for each item), or a `Result` of these"
)]
pub trait IntoOutcomes {
    /// Returns the outcomes of a batch of `count` items.
    fn into_outcomes(self, count: usize) -> Vec<Outcome>;
}

impl IntoOutcomes for () {
    fn into_outcomes(self, count: usize) -> Vec<Outcome> {
        vec![Outcome::Ack; count]
    }
}

impl IntoOutcomes for Outcome {
    fn into_outcomes(self, count: usize) -> Vec<Outcome> {
        vec![self; count]
    }
}

impl IntoOutcomes for Vec<Outcome> {
    fn into_outcomes(self, count: usize) -> Vec<Outcome> {
        if self.len() == count {
            return self;
        }
        let answered = self.len();
        let error = format_args!("the batch handler answered {answered} outcomes for {count} items");
        vec![Outcome::retry(error); count]
    }
}

impl<T: IntoOutcomes, E: Into<Box<dyn StdError + Send + Sync>>> IntoOutcomes for Result<T, E> {
    fn into_outcomes(self, count: usize) -> Vec<Outcome> {
        match self {
            Ok(value) => value.into_outcomes(count),
            Err(error) => vec![Err::<(), _>(error).into_outcome(); count],
        }
    }
}

/// An argument that a batch handler can take before its batch.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be extracted for a batch",
    label = "not an extractor of batches",
    note = "a batch handler takes State<T> and Bus, and last Batch<T>; attempt, meta, headers, deadline and emitter \
            belong to each item: `item.attempt()`"
)]
pub trait FromBatch<S>: Sized {
    /// Extracts the argument.
    ///
    /// # Errors
    /// An error becomes the outcome of every item.
    fn from_batch(bus: &Bus, state: &S) -> Result<Self>;
}

impl<S, T: FromRef<S>> FromBatch<S> for State<T> {
    fn from_batch(_: &Bus, state: &S) -> Result<Self> {
        Ok(Self(T::from_ref(state)))
    }
}

impl<S> FromBatch<S> for Bus {
    fn from_batch(bus: &Bus, _: &S) -> Result<Self> {
        Ok(bus.clone())
    }
}

/// A function that handles many events at once. Implemented for async functions of extractors whose last argument is
/// a [`Batch`].
#[diagnostic::on_unimplemented(
    message = "this function is not a batch handler",
    label = "not a batch handler",
    note = "a batch handler is an `async fn` of up to 4 extractors (`State<T>`, `Bus`) and last a `Batch<T>`, with \
            every future `Send`; it returns `()`, `Outcome`, `Vec<Outcome>`, or a `Result` of these"
)]
pub trait BatchHandler<M, S>: Clone + Send + Sync + Sized + 'static {
    /// The type of the events.
    type Event: Event;

    /// Handles one batch; returns one outcome for each item.
    fn call(
        self,
        batch: Batch<Self::Event>,
        bus: Bus,
        state: Arc<S>,
    ) -> impl Future<Output = Vec<Outcome>> + Send + 'static;

    /// Creates a handler of batches of up to `max` items; a batch that is not full starts `wait` after its first item
    /// arrived.
    ///
    /// It has all settings of a [`Handler`](super::Handler). `concurrency(n)` means `n` batches at a time, by default
    /// one, and up to `max · n` messages are fetched. The retry policy and the dead letters apply to each item.
    /// Layers wrap each item, so a `Timeout` also covers the wait for the batch.
    ///
    /// With `keyed()` a batch contains at most one item of each key, because the next message of a key is delivered
    /// only after the previous one is settled. This keeps the order, and it makes batches small when few keys are
    /// busy: then every item of a key waits for `wait`, so keep it short.
    fn batch(self, max: usize, wait: Duration) -> Batching<Self, M, S> {
        Batching::new(self, max, wait)
    }
}

/// A handler created by [`BatchHandler::batch`].
pub struct Batching<H: BatchHandler<M, S>, M, S> {
    handler: H,
    max: usize,
    wait: Duration,
    /// Started by the first message; ends when the last clone is dropped.
    collector: Arc<OnceLock<Collector<H::Event>>>,
    _types: PhantomData<fn() -> (M, S)>,
}

impl<H: BatchHandler<M, S>, M, S> Batching<H, M, S> {
    fn new(handler: H, max: usize, wait: Duration) -> Self {
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
            let queue = self.collector.get_or_init(|| self.collect(&incoming, state)).queue();
            (queue, Item::new(event, incoming))
        });
        async move {
            match joined {
                Ok((queue, item)) => queue.handle(item).await,
                Err(error) => error.into(),
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
        let bounds = Bounds {
            max: self.max,
            wait: self.wait,
            concurrency: first.handler.concurrency,
            draining: first.handler.draining.clone(),
        };
        let (handler, bus) = (self.handler.clone(), first.bus.clone());
        Collector::start(bounds, move |batch| handler.clone().call(batch, bus.clone(), state.clone()))
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

macro_rules! functions {
    ($([$($extractor:ident)*])*) => {$(
        // Without extractors the closure for `?` does nothing.
        #[allow(non_snake_case, unused_variables, clippy::redundant_closure_call)]
        impl<F, Fut, S, Ev, $($extractor,)*> BatchHandler<($($extractor,)* Batch<Ev>,), S> for F
        where
            F: Fn($($extractor,)* Batch<Ev>) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: IntoOutcomes,
            Ev: Event,
            $($extractor: FromBatch<S>,)*
        {
            type Event = Ev;

            fn call(
                self,
                batch: Batch<Ev>,
                bus: Bus,
                state: Arc<S>,
            ) -> impl Future<Output = Vec<Outcome>> + Send + 'static {
                let count = batch.len();
                let future = (|| {
                    $(let $extractor = $extractor::from_batch(&bus, &state)?;)*
                    Ok::<_, crate::Error>(self($($extractor,)* batch))
                })();
                async move {
                    match future {
                        Ok(future) => future.await.into_outcomes(count),
                        Err(error) => vec![error.into(); count],
                    }
                }
            }
        }
    )*};
}

functions! { [] [A] [A B] [A B C] [A B C D] }
