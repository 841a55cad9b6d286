//! One publish: options by method, sent when awaited.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use smol_str::SmolStr;

use super::{Bus, subject_of};
use crate::bounds;
use crate::context::Context;
use crate::envelope::{self, Meta};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::message::{Durability, Headers, Message, MessageId};
use crate::transport::Receipt;

/// A publish that is being put together; `.await` sends it and answers when the broker holds it.
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
    bus: &'a Bus,
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
    pub(super) fn new(bus: &'a Bus, event: E) -> Self {
        Self { bus, event, options: Options::default() }
    }

    /// Uses this id instead of a fresh UUIDv7, so that a repeat is recognised.
    pub fn id(mut self, id: impl Into<MessageId>) -> Self {
        self.options.id = Some(id.into());
        self
    }

    /// Asks the broker to store one message per id within its dedup window.
    pub fn dedup(mut self) -> Self {
        self.options.dedup = true;
        self
    }

    /// Uses this ordering key instead of the event's own.
    pub fn key(mut self, key: impl Into<SmolStr>) -> Self {
        self.options.key = Some(key.into());
        self
    }

    /// Names the entity that it is about (CloudEvents `subject`).
    pub fn entity(mut self, entity: impl Into<SmolStr>) -> Self {
        self.options.about = Some(entity.into());
        self
    }

    /// Adds a free header; a bad name or value fails the publish.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Err(error) = self.options.headers.set(name, value) {
            self.options.refused.get_or_insert(error);
        }
        self
    }

    /// Not delivered before `delay` has passed, at most [`LONGEST`](crate::LONGEST).
    pub fn delay(self, delay: Duration) -> Self {
        let at = bounds::time_from_now(delay);
        self.at(at)
    }

    /// Not delivered before `time`.
    pub fn at(mut self, time: Timestamp) -> Self {
        self.options.deliver_at = Some(time);
        self
    }

    /// Skipped when it was not delivered within `age`, at most [`LONGEST`](crate::LONGEST).
    pub fn expires_in(mut self, age: Duration) -> Self {
        self.options.expires_at = Some(bounds::time_from_now(age));
        self
    }

    /// How safe it must be before this returns.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Fills correlation, cause and trace from `context` instead of what this task handles.
    pub fn context(mut self, context: Context) -> Self {
        self.options.context = Some(context);
        self
    }

    /// The message as it would be sent.
    ///
    /// # Errors
    /// When the event cannot be encoded or an option is invalid.
    pub fn into_message(self) -> Result<Message> {
        message(self.bus, &self.event, self.options)
    }
}

impl<'a, E: Event> IntoFuture for Publish<'a, E> {
    type Output = Result<Receipt>;
    type IntoFuture = BoxFuture<'a, Result<Receipt>>;

    fn into_future(self) -> Self::IntoFuture {
        let bus = self.bus;
        // Encoded here and now, so that the future does not carry the event.
        let message = self.into_message();
        Box::pin(async move { bus.publish_message(message?).await })
    }
}

/// Wraps an event in its envelope.
pub(crate) fn message<E: Event>(bus: &Bus, event: &E, options: Options) -> Result<Message> {
    let refuse = |error: Error| error.during("publish").with("subject", E::SUBJECT);
    if let Some(error) = options.refused {
        return Err(refuse(error));
    }
    let settings = bus.settings();
    let subject = subject_of::<E>()?;
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
