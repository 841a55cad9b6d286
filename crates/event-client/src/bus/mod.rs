//! The bus: a cheap handle to publish events, subscribe and send requests.

mod connection;
mod env;
mod lag;
mod publish;
mod publishing;
mod window;

use std::fmt;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

pub(crate) use connection::Connection;
pub use connection::Settings;
pub use lag::LagExport;
pub use publish::Publish;
pub use publishing::Publishing;
pub use window::Window;

use crate::confirm::Confirm;
use crate::event::Event;
use crate::message::Message;
use crate::request::{Call, Client, Request, Sender, ServiceHealth, health};
use crate::subscription::Subscription;
use crate::transport::{self, Admin, Capabilities, Receipt, Subscribe, Transport};
use crate::url::BusUrl;
use event_transport::error::Result;

/// A connection to the bus; clones share it.
#[derive(Clone)]
pub struct Bus(Arc<Connection>);

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
    /// The errors of [`transport::open`], and [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a
    /// durability that the transport cannot guarantee.
    pub async fn connect_with(url: &str, settings: Settings) -> Result<Self> {
        let url: BusUrl = url.parse()?;
        Self::with_transport(transport::open(url).await?, settings)
    }

    /// Creates a bus over a transport that is already open, such as your own implementation.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a durability that the transport cannot guarantee.
    pub fn with_transport(transport: Arc<dyn Transport>, settings: Settings) -> Result<Self> {
        Connection::new(transport, settings).map(|connection| Self(Arc::new(connection)))
    }

    /// Returns a bus over the same connection with other settings and its own window.
    ///
    /// # Errors
    /// The errors of [`Bus::with_transport`].
    pub fn with_settings(&self, settings: Settings) -> Result<Self> {
        Self::with_transport(self.0.transport().clone(), settings)
    }

    /// Returns the settings of this handle.
    pub fn settings(&self) -> &Settings {
        self.0.settings()
    }

    /// Returns the capabilities of the transport.
    pub fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    /// Publishes an event; await the returned builder to send it and to wait for the broker's confirmation.
    pub fn publish<E: Event>(&self, event: E) -> Publish<'_, E> {
        Publish::new(&self.0, event)
    }

    /// Publishes many events concurrently and returns their receipts when all are confirmed.
    ///
    /// # Errors
    /// The first failure in order. The events before and after it may have been stored. Every call gives the events
    /// new ids, so a repeat stores them again; use [`Publish::id`] for an id that stays the same.
    pub async fn publish_all<E: Event>(&self, events: impl IntoIterator<Item = E>) -> Result<Vec<Receipt>> {
        let mut window = self.window(self.settings().window);
        for event in events {
            window.push(event).await?;
        }
        window.flush().await
    }

    /// Opens a sliding window: up to `size` publishes wait for their confirmation while the caller continues.
    pub fn window(&self, size: usize) -> Window<'_> {
        Window::new(&self.0, size)
    }

    /// Publishes a message unchanged, for bridges and tools.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge),
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for an option that the transport lacks, and transport
    /// errors.
    pub async fn publish_message(&self, message: Message) -> Result<Receipt> {
        Publishing::new(&self.0, Ok(message)).await
    }

    /// Whether the next [`Bus::send`] would wait for a place.
    pub(crate) fn is_window_full(&self) -> bool {
        self.0.is_window_full()
    }

    /// Waits for a place in the window and sends the message. Never wait here while holding places.
    pub(crate) async fn send(&self, message: Message) -> Result<(OwnedSemaphorePermit, Confirm<Receipt>)> {
        self.0.send(message).await
    }

    /// Sends a request to one member of the service that serves it; await the returned builder for the answer.
    pub fn request<T: Request>(&self, request: T) -> Call<'_, T> {
        Call::new(Sender::direct(&self.0), request)
    }

    /// Returns a client that sends requests through layers:
    /// `bus.client().layer(Timeout::new(Duration::from_secs(2)))`.
    pub fn client(&self) -> Client {
        Client::new(self.0.clone())
    }

    /// Requests the health of one member of a service. The library answers for every service, whatever handlers it
    /// has.
    ///
    /// # Errors
    /// [`ErrorKind::NoResponder`](crate::ErrorKind::NoResponder) when no member runs,
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) when none answers within [`HEALTH_DEADLINE`], and transport
    /// errors.
    ///
    /// [`HEALTH_DEADLINE`]: crate::request::HEALTH_DEADLINE
    pub async fn health(&self, service: &str) -> Result<ServiceHealth> {
        health::ask(self.transport().requests(), service).await
    }

    /// Opens a subscription of raw deliveries. Services use [`Service`](crate::service::Service) instead.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for an option that the transport lacks, and transport
    /// errors.
    pub async fn subscribe(&self, spec: Subscribe) -> Result<Subscription> {
        self.0.transport().subscribe(spec).await.map_err(|error| error.during("subscribe"))
    }

    /// Returns the administration interface: dead letters, groups and lag.
    pub fn admin(&self) -> &dyn Admin {
        self.0.transport().admin()
    }

    /// Returns the transport of this bus.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        self.0.transport()
    }

    /// Flushes pending messages and closes the connection for all clones.
    ///
    /// # Errors
    /// An error when pending messages could not be flushed.
    pub async fn close(&self) -> Result<()> {
        self.0.transport().close().await.map_err(|error| error.during("close"))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
