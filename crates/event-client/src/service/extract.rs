//! Extractors: the types that a handler's arguments may have.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;
use uuid::Uuid;

use super::incoming::Incoming;
use super::route::{Endpoint, Route};
use super::versions::Versions;
use crate::bus::{Bus, Publish};
use crate::context::Context;
use crate::envelope;
use crate::event::{Event, version_of};
use crate::message::{Headers, Message, MessageId};
use event_transport::error::{Error, ErrorKind, Result};

/// An argument that a handler can take before its payload.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be extracted from an incoming message",
    label = "not an extractor",
    note = "a handler takes State<T>, Attempt, Meta, Emitter, Headers, Deadline or Bus, and last Msg<T>, Req<T>, Dynamic or Raw"
)]
pub trait FromIncoming<S>: Sized {
    /// Extracts the argument.
    ///
    /// # Errors
    /// An error becomes the message's outcome: kinds that a retry cannot correct make a dead letter, all others are
    /// retried.
    fn from_incoming(incoming: &Incoming, state: &S) -> Result<Self>;
}

/// A handler's last argument, whose type defines which messages the handler receives.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a handler's last argument",
    label = "does not define which messages to receive",
    note = "the last argument is Msg<T> of an `#[derive(Event)]` type, Req<T> of a `#[derive(Request)]` type, or Dynamic or Raw with `.on_subject(\"orders.>\", handler)`"
)]
pub trait FromPayload: Sized {
    /// Returns the handler's name and the subjects to receive.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the type defines no subjects, or its versions have a gap.
    fn route() -> Result<Route>;

    /// Returns the request that the handler answers; `None` for events.
    fn request() -> Option<Endpoint> {
        None
    }

    /// Returns the versions of one event that the type can read; an event of another version waits in the group for a
    /// member that can read it. `None` when the type accepts every message.
    fn versions() -> Option<Versions> {
        None
    }

    /// Extracts the payload.
    ///
    /// # Errors
    /// The errors of [`FromIncoming::from_incoming`].
    fn from_payload(incoming: &Incoming) -> Result<Self>;
}

/// The decoded event; older versions are upcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msg<T>(pub T);

impl<T: Event> FromPayload for Msg<T> {
    fn route() -> Result<Route> {
        T::subjects()?; // reports a gap in the versions
        Ok(Route { name: SmolStr::new_static(T::NAME), filters: vec![T::pattern()?] })
    }

    fn versions() -> Option<Versions> {
        Some(Versions::of::<T>())
    }

    fn from_payload(incoming: &Incoming) -> Result<Self> {
        let kind = incoming.envelope.meta.event_type.as_str();
        let version = version_of(kind, T::NAME).ok_or_else(|| {
            Error::new(
                ErrorKind::UnknownType,
                format!("the event's type is `{kind}`, but this handler takes `{}`", T::NAME),
            )
        })?;
        T::decode(version, &incoming.envelope).map(Self)
    }
}

/// Any event as a JSON value with its type, for wildcard subscriptions.
#[derive(Clone, Debug)]
pub struct Dynamic {
    /// The event's type.
    pub kind: SmolStr,
    /// Its data.
    pub data: serde_json::Value,
}

impl FromPayload for Dynamic {
    fn route() -> Result<Route> {
        needs_subject("Dynamic")
    }

    fn from_payload(incoming: &Incoming) -> Result<Self> {
        Ok(Self { kind: incoming.envelope.meta.event_type.clone(), data: incoming.envelope.decode()? })
    }
}

/// The message as it was received, without decoding.
#[derive(Clone, Debug)]
pub struct Raw(pub Arc<Message>);

impl FromPayload for Raw {
    fn route() -> Result<Route> {
        needs_subject("Raw")
    }

    fn from_payload(incoming: &Incoming) -> Result<Self> {
        Ok(Self(incoming.message.clone()))
    }
}

fn needs_subject(what: &str) -> Result<Route> {
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "a handler of `{what}` defines no subjects to receive; register it with `.on_subject(\"orders.>\", handler)`"
        ),
    ))
}

/// A part of the service's state.
#[derive(Clone, Copy, Debug)]
pub struct State<T>(pub T);

/// Extracts a part from the whole state; the whole state is also a part of itself.
pub trait FromRef<S> {
    /// Clones the part.
    fn from_ref(state: &S) -> Self;
}

impl<S: Clone> FromRef<S> for S {
    fn from_ref(state: &S) -> Self {
        state.clone()
    }
}

impl<S, T: FromRef<S>> FromIncoming<S> for State<T> {
    fn from_incoming(_: &Incoming, state: &S) -> Result<Self> {
        Ok(Self(T::from_ref(state)))
    }
}

/// The current attempt of the handler to handle this message.
#[derive(Clone, Debug)]
pub struct Attempt {
    number: u32,
    most: u32,
    key: SmolStr,
}

impl Attempt {
    /// Returns the number of the attempt, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether a failure of this attempt makes the message a dead letter.
    pub fn is_last(&self) -> bool {
        self.number >= self.most
    }

    /// Returns a key that is the same in every attempt of this handler to handle this event: pass it to payment
    /// providers and similar services.
    pub fn idempotency_key(&self) -> &str {
        &self.key
    }
}

impl<S> FromIncoming<S> for Attempt {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(Self {
            number: incoming.info.attempt,
            most: incoming.handler.attempts,
            key: incoming.idempotency_key(),
        })
    }
}

/// The event's attributes.
#[derive(Clone, Debug)]
pub struct Meta(pub envelope::Meta);

impl Deref for Meta {
    type Target = envelope::Meta;
    fn deref(&self) -> &envelope::Meta {
        &self.0
    }
}

impl<S> FromIncoming<S> for Meta {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(Self(incoming.envelope.meta.clone()))
    }
}

impl<S> FromIncoming<S> for Headers {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(incoming.message.headers.clone())
    }
}

impl<S> FromIncoming<S> for Bus {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(incoming.bus.clone())
    }
}

impl<S> FromIncoming<S> for Context {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(incoming.context.clone())
    }
}

/// The time until which the result is needed.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Option<Instant>);

impl Deadline {
    /// Returns the time that is left; `None` without a deadline.
    pub fn left(&self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl<S> FromIncoming<S> for Deadline {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        Ok(Self(incoming.deadline))
    }
}

/// Publishes events that the event being handled causes.
///
/// Correlation, cause and trace are filled in, and ids are derived from the cause: when the handler is retried, the
/// n-th event that it emits has the same id as before if it has the same type, so that an inbox or a dedup window
/// downstream recognises it.
#[derive(Debug)]
pub struct Emitter {
    bus: Bus,
    context: Context,
    cause: Uuid,
    emitted: AtomicU32,
}

impl Emitter {
    /// Publishes `event`; await the returned builder.
    pub fn emit<E: Event>(&self, event: E) -> Publish<'_, E> {
        let nth = self.emitted.fetch_add(1, Ordering::Relaxed);
        let id = Uuid::new_v5(&self.cause, format!("{}:{nth}", E::SUBJECT).as_bytes());
        self.bus.publish(event).id(MessageId::Uuid(id)).context(self.context.clone())
    }
}

impl<S> FromIncoming<S> for Emitter {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        let cause = Uuid::new_v5(&Uuid::NAMESPACE_OID, incoming.idempotency_key().as_bytes());
        Ok(Self {
            bus: incoming.bus.clone(),
            context: incoming.context.clone(),
            cause,
            emitted: AtomicU32::new(0),
        })
    }
}
