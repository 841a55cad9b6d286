//! The argument of a batch handler: the events of one batch, each with its metadata.

use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;

use crate::envelope::Meta;
use crate::message::Headers;
use crate::service::extract::{Attempt, Deadline, Emitter, FromIncoming};
use crate::service::incoming::Incoming;

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
