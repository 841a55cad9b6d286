//! The bus: a cheap handle to publish events, subscribe and send requests.

mod env;
mod lag;
mod publish;
mod window;

use std::fmt;
use std::sync::Arc;

use smol_str::SmolStr;
use tokio::sync::Semaphore;

pub use lag::LagExport;
pub use publish::Publish;
pub use window::Window;

use crate::codec::Codec;
use crate::confirm::Confirm;
use crate::envelope::Mode;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::message::{Durability, Message};
use crate::request::{Call, Client, Door, Request};
use crate::subject::Subject;
use crate::subscription::Subscription;
use crate::transport::{self, Admin, Capabilities, Receipt, Subscribe, Transport};
use crate::url::BusUrl;

/// A connection to the bus; clones share it.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    transport: Arc<dyn Transport>,
    settings: Settings,
    /// Bounds the messages that wait for their publisher confirm; a further publish waits for a free place.
    window: Arc<Semaphore>,
}

/// The settings with which a service uses its bus.
#[derive(Clone, Debug)]
pub struct Settings {
    /// CloudEvents `source` of all events published through this bus, such as `/billing`.
    pub source: SmolStr,
    /// The encoding of payloads. Default JSON.
    pub codec: Codec,
    /// The place of the envelope's attributes: in the payload or in headers. Default structured: in the payload.
    pub mode: Mode,
    /// The most unconfirmed publishes at a time. Default 4096.
    pub window: usize,
    /// The durability of a publish that sets none. Default: the transport's own class.
    pub durability: Durability,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: SmolStr::new_static("/backbone"),
            codec: Codec::Json,
            mode: Mode::Structured,
            window: 4096,
            durability: Durability::Default,
        }
    }
}

impl Bus {
    /// Connects with default settings; the URL selects the transport.
    ///
    /// The URLs of each transport and all their options: [`memory`](transport::docs::memory),
    /// [`sqlite`](transport::docs::sqlite), [`nats`](transport::docs::nats), [`redis`](transport::docs::redis),
    /// [`rabbitmq`](transport::docs::rabbitmq).
    ///
    /// # Errors
    /// The errors of [`transport::open`].
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, Settings::default()).await
    }

    /// Connects with these settings.
    ///
    /// # Errors
    /// The errors of [`transport::open`], and [`ErrorKind::Unsupported`] for a durability that the transport cannot
    /// guarantee.
    pub async fn connect_with(url: &str, settings: Settings) -> Result<Self> {
        let url: BusUrl = url.parse()?;
        Self::with_transport(transport::open(url).await?, settings)
    }

    /// Creates a bus over a transport that is already open, such as your own implementation.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a durability that the transport cannot guarantee.
    pub fn with_transport(transport: Arc<dyn Transport>, settings: Settings) -> Result<Self> {
        let most = transport.capabilities().max_durability;
        if settings.durability > most {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the transport `{}` with this configuration does not guarantee durability {:?}",
                    transport.capabilities().name,
                    settings.durability
                ),
            )
            .during("connect"));
        }
        let window = Arc::new(Semaphore::new(settings.window.max(1)));
        Ok(Self(Arc::new(Inner { transport, settings, window })))
    }

    /// Returns a bus over the same connection with other settings and its own window.
    ///
    /// # Errors
    /// The errors of [`Bus::with_transport`].
    pub fn with_settings(&self, settings: Settings) -> Result<Self> {
        Self::with_transport(self.0.transport.clone(), settings)
    }

    /// Returns the settings of this handle.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Returns the capabilities of the transport.
    pub fn capabilities(&self) -> &Capabilities {
        self.0.transport.capabilities()
    }

    /// Publishes an event; await the returned builder to send it and to wait for the broker's confirmation.
    pub fn publish<E: Event>(&self, event: E) -> Publish<'_, E> {
        Publish::new(self, event)
    }

    /// Publishes many events concurrently and returns their receipts when all are confirmed.
    ///
    /// # Errors
    /// The first failure in order. The events before and after it may have been stored. Every call gives the events
    /// new ids, so a repeat stores them again; use [`Publish::id`] for an id that stays the same.
    pub async fn publish_all<E: Event>(&self, events: impl IntoIterator<Item = E>) -> Result<Vec<Receipt>> {
        let mut window = self.window(self.0.settings.window);
        for event in events {
            window.push(event).await?;
        }
        window.flush().await
    }

    /// Opens a sliding window: up to `size` publishes wait for their confirmation while the caller continues.
    pub fn window(&self, size: usize) -> Window<'_> {
        Window::new(self, size)
    }

    /// Publishes a message unchanged, for bridges and tools.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Unsupported`] for an option that the transport lacks, and transport errors.
    pub async fn publish_message(&self, message: Message) -> Result<Receipt> {
        let subject = message.subject.clone();
        let (_slot, confirm) = self.send(message).await?;
        confirm.await.map_err(|error| error.during("publish").with("subject", subject))
    }

    /// Whether the next [`Bus::send`] would wait for a place.
    pub(crate) fn is_window_full(&self) -> bool {
        self.0.window.available_permits() == 0
    }

    /// Waits for a place in the window and sends the message. Never wait here while holding places: when two callers
    /// do that, neither gets a place.
    pub(crate) async fn send(
        &self,
        message: Message,
    ) -> Result<(tokio::sync::OwnedSemaphorePermit, Confirm<Receipt>)> {
        self.check(&message).map_err(|error| error.during("publish").with("subject", &message.subject))?;
        let slot = self.0.window.clone().acquire_owned().await.expect("the window is never closed");
        Ok((slot, self.0.transport.publish(message)))
    }

    pub(crate) fn check(&self, message: &Message) -> Result<()> {
        self.capabilities().check(message)
    }

    /// Sends a request to one member of the service that serves it; await the returned builder for the answer.
    pub fn request<T: Request>(&self, request: T) -> Call<'_, T> {
        Call::new(Door::Bus(self), request)
    }

    /// Returns a client that sends requests through layers:
    /// `bus.client().layer(Timeout::new(Duration::from_secs(2)))`.
    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    /// Opens a subscription of raw deliveries. Services use [`Service`](crate::service::Service) instead.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an option that the transport lacks, and transport errors.
    pub async fn subscribe(&self, spec: Subscribe) -> Result<Subscription> {
        self.0.transport.subscribe(spec).await.map_err(|error| error.during("subscribe"))
    }

    /// Returns the administration interface: dead letters, groups and lag.
    pub fn admin(&self) -> &dyn Admin {
        self.0.transport.admin()
    }

    /// Returns the transport of this bus.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    /// Flushes pending messages and closes the connection for all clones.
    ///
    /// # Errors
    /// An error when pending messages could not be flushed.
    pub async fn close(&self) -> Result<()> {
        self.0.transport.close().await.map_err(|error| error.during("close"))
    }
}

/// The subject of an event type.
fn subject_of<E: Event>() -> Result<Subject> {
    Subject::new(E::SUBJECT)
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("transport", &self.0.transport)
            .field("settings", &self.0.settings)
            .finish()
    }
}
