//! Batch handlers: plain async functions whose last argument is a [`Batch`].

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::collector::Batching;
use super::extract::{Attempt, Deadline, Emitter, FromIncoming, FromRef, State};
use super::incoming::Incoming;
use super::outcome::{IntoOutcome, Outcome};
use crate::bus::Bus;
use crate::envelope::Meta;
use crate::error::Result;
use crate::event::Event;
use crate::message::Headers;

/// Events that are handled together. Dereferences to a slice of [`Item`]s, in the order of arrival.
#[derive(Debug)]
pub struct Batch<E>(pub(crate) Vec<Item<E>>);

impl<E> Batch<E> {
    /// Returns the events without their metadata.
    pub fn events(&self) -> impl Iterator<Item = &E> {
        self.0.iter().map(|item| &item.event)
    }
}

impl<E> Deref for Batch<E> {
    type Target = [Item<E>];
    fn deref(&self) -> &[Item<E>] {
        &self.0
    }
}

impl<E> IntoIterator for Batch<E> {
    type Item = Item<E>;
    type IntoIter = std::vec::IntoIter<Item<E>>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One event of a batch, with everything that a plain handler can extract.
pub struct Item<E> {
    /// The event; older versions are upcast.
    pub event: E,
    incoming: Incoming,
    emitter: OnceLock<Emitter>,
}

impl<E> Item<E> {
    pub(crate) fn new(event: E, incoming: Incoming) -> Self {
        Self { event, incoming, emitter: OnceLock::new() }
    }

    /// Returns the event's attributes.
    pub fn meta(&self) -> &Meta {
        &self.incoming.envelope.meta
    }

    /// Returns the attempt of this item; attempts are counted separately for each item.
    pub fn attempt(&self) -> Attempt {
        self.extract()
    }

    /// Returns the event's headers.
    pub fn headers(&self) -> &Headers {
        &self.incoming.message.headers
    }

    /// Returns the time until which the item's result is needed.
    pub fn deadline(&self) -> Deadline {
        self.extract()
    }

    /// Returns the emitter of this item: the events that it publishes take correlation, cause and trace from this
    /// item, and their ids are the same in all attempts.
    pub fn emitter(&self) -> &Emitter {
        self.emitter.get_or_init(|| self.extract())
    }

    /// Returns the incoming message: context, position, idempotency key.
    pub fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    fn extract<T: FromIncoming<()>>(&self) -> T {
        T::from_incoming(&self.incoming, &()).expect("these extractors never fail")
    }
}

impl<E: fmt::Debug> fmt::Debug for Item<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("event", &self.event).field("incoming", &self.incoming).finish()
    }
}

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
