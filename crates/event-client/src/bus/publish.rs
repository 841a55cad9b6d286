//! One publish: a builder with a method for each option, which sends the message when awaited.

use std::future::IntoFuture;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;

use super::connection::Connection;
use super::publishing::Publishing;
use crate::context::Context;
use crate::envelope::{self, Meta};
use crate::event::Event;
use crate::message::{Durability, Headers, Message, MessageId};
use crate::subject::Subject;
use crate::transport::Receipt;
use event_transport::bounds;
use event_transport::error::{Error, Result};

/// A publish under construction; `.await` sends the message and returns after the broker has confirmed it.
///
/// ```no_run
/// # use event_client::{Bus, Event};
/// # #[derive(Event, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// # #[event(name = "orders.placed", version = 1)] struct OrderPlaced {}
/// # async fn doc(bus: Bus) -> event_client::Result<()> {
/// use std::time::Duration;
/// bus.publish(OrderPlaced {}).await?;
/// bus.publish(OrderPlaced {}).id("order-7").dedup().delay(Duration::from_secs(5)).header("tenant", "acme").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Publish<'a, E> {
    bus: &'a Connection,
    event: E,
    options: Options,
}

#[derive(Debug, Default)]
pub(crate) struct Options {
    id: Option<MessageId>,
    key: Option<SmolStr>,
    about: Option<SmolStr>,
    headers: Headers,
    deliver_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    dedup: bool,
    durability: Durability,
    context: Option<Context>,
    refused: Option<Error>,
}

impl<'a, E: Event> Publish<'a, E> {
    pub(super) fn new(bus: &'a Connection, event: E) -> Self {
        Self { bus, event, options: Options::default() }
    }

    /// Uses this id instead of a new UUIDv7, so that a repeat with the same id is recognised.
    pub fn id(mut self, id: impl Into<MessageId>) -> Self {
        self.options.id = Some(id.into());
        self
    }

    /// Requests that the broker stores only one message with this id within its dedup window.
    pub fn dedup(mut self) -> Self {
        self.options.dedup = true;
        self
    }

    /// Uses this ordering key instead of the event's own.
    pub fn key(mut self, key: impl Into<SmolStr>) -> Self {
        self.options.key = Some(key.into());
        self
    }

    /// Sets the entity that the event is about (CloudEvents `subject`).
    pub fn entity(mut self, entity: impl Into<SmolStr>) -> Self {
        self.options.about = Some(entity.into());
        self
    }

    /// Adds a free header; an invalid name or value makes the publish fail.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Err(error) = self.options.headers.set(name, value) {
            self.options.refused.get_or_insert(error);
        }
        self
    }

    /// Delays the delivery by `delay`, at most [`LONGEST`](crate::LONGEST).
    pub fn delay(self, delay: Duration) -> Self {
        let at = bounds::time_from_now(delay);
        self.at(at)
    }

    /// Delays the delivery until `time`.
    pub fn at(mut self, time: Timestamp) -> Self {
        self.options.deliver_at = Some(time);
        self
    }

    /// Lets the message expire: it is skipped when it was not delivered within `age`, at most
    /// [`LONGEST`](crate::LONGEST).
    pub fn expires_in(mut self, age: Duration) -> Self {
        self.options.expires_at = Some(bounds::time_from_now(age));
        self
    }

    /// Sets the durability that the message must have before the publish returns.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Takes correlation, cause and trace from `context` instead of from the message that this task handles.
    pub fn context(mut self, context: Context) -> Self {
        self.options.context = Some(context);
        self
    }

    /// Returns the message that would be sent, without sending it.
    ///
    /// # Errors
    /// An error when the event cannot be encoded or an option is invalid.
    pub fn into_message(self) -> Result<Message> {
        message(self.bus, &self.event, self.options)
    }
}

impl<'a, E: Event> IntoFuture for Publish<'a, E> {
    type Output = Result<Receipt>;
    type IntoFuture = Publishing<'a>;

    fn into_future(self) -> Self::IntoFuture {
        // Encoded now, so that the future does not own the event.
        Publishing::new(self.bus, self.into_message())
    }
}

/// Wraps an event in its envelope.
pub(crate) fn message<E: Event>(bus: &Connection, event: &E, options: Options) -> Result<Message> {
    let refuse = |error: Error| error.during("publish").with("subject", E::SUBJECT);
    if let Some(error) = options.refused {
        return Err(refuse(error));
    }
    let settings = bus.settings();
    let subject = Subject::new(E::SUBJECT)?;
    let id = options.id.unwrap_or_else(MessageId::now);
    let key = options.key.or_else(|| event.key());
    let mut meta = Meta::new(id.clone(), settings.source.clone(), SmolStr::new_static(E::SUBJECT));
    meta.subject = options.about;
    meta.partitionkey = key.clone();
    meta.expirytime = options.expires_at;
    meta.caused_by(options.context.or_else(Context::current).as_ref());
    let (content_type, mut headers, payload) =
        envelope::write(&mut meta, event, settings.codec, settings.mode).map_err(refuse)?;
    headers.add_free(&options.headers).map_err(refuse)?;
    let durability =
        if options.durability == Durability::Default { settings.durability } else { options.durability };
    Ok(Message {
        subject,
        id,
        key,
        content_type,
        headers,
        payload,
        deliver_at: options.deliver_at,
        expires_at: options.expires_at,
        dedup: options.dedup,
        durability,
    })
}
