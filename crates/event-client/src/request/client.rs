//! A client: sends requests through layers to the bus.

use std::fmt;

use tokio::time::Instant;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;
use tower_layer::Layer;

use super::{Answer, Call, Request};
use crate::bus::Bus;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::status::Code;

/// A request that passes through a client's layers to the bus.
///
/// A layer that sends a request twice can clone it cheaply: the payload is shared, and a repeat keeps its id.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(crate) message: Message,
    pub(crate) context: Context,
    pub(crate) deadline: Instant,
    pub(crate) idempotent: bool,
    pub(crate) system: &'static str,
}

impl Outgoing {
    /// Returns the message to send.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Returns the correlation, the cause and the trace span of the caller.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the time by which the answer must have arrived.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the name of the transport that sends the request.
    pub fn system(&self) -> &'static str {
        self.system
    }

    /// Whether repeating the request is harmless.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}

/// The tower service that a client's layers wrap: it takes one request and returns its answer.
pub type BoxCall = BoxCloneSyncService<Outgoing, Answer, Error>;

/// Sends requests through layers such as [`Timeout`](crate::layers::Timeout) and
/// [`CircuitBreaker`](crate::layers::CircuitBreaker). Clones share the layers' state.
#[derive(Clone)]
pub struct Client {
    bus: Bus,
    service: BoxCall,
}

impl Client {
    pub(crate) fn new(bus: Bus) -> Self {
        let way_out = bus.clone();
        let service = BoxCloneSyncService::new(tower::service_fn(move |outgoing| {
            let bus = way_out.clone();
            async move { send(&bus, outgoing).await }
        }));
        Self { bus, service }
    }

    /// Adds a layer around the calls of this client. The last layer added is the outermost; in a tuple the first is.
    #[must_use]
    pub fn layer<L>(self, layer: L) -> Self
    where
        L: Layer<BoxCall>,
        L::Service: tower_service::Service<Outgoing, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as tower_service::Service<Outgoing>>::Error: Into<tower::BoxError>,
        <L::Service as tower_service::Service<Outgoing>>::Future: Send,
    {
        let service = layer.layer(self.service).map_err(crate::layers::into_error);
        Self { bus: self.bus, service: BoxCloneSyncService::new(service) }
    }

    /// Sends a request; await the returned builder for the answer.
    pub fn request<T: Request>(&self, request: T) -> Call<'_, T> {
        Call::new(Door::Client(self), request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("bus", &self.bus).finish_non_exhaustive()
    }
}

/// The sender of a call: the bus itself, or a client with layers.
#[derive(Clone, Copy)]
pub(crate) enum Door<'a> {
    Bus(&'a Bus),
    Client(&'a Client),
}

impl<'a> Door<'a> {
    pub(super) fn bus(&self) -> &'a Bus {
        match self {
            Self::Bus(bus) => bus,
            Self::Client(client) => &client.bus,
        }
    }

    pub(super) async fn send(self, outgoing: Outgoing) -> Result<Answer> {
        match self {
            Self::Bus(bus) => send(bus, outgoing).await,
            Self::Client(client) => {
                let until = outgoing.deadline;
                // Layers may wait, for a permit or before a repeat; the deadline bounds these waits too.
                let answer = tokio::time::timeout_at(until, client.service.clone().oneshot(outgoing)).await;
                answer.unwrap_or_else(|_| Err(late()))
            }
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "no answer arrived within the deadline")
}

async fn send(bus: &Bus, outgoing: Outgoing) -> Result<Answer> {
    let Outgoing { message, deadline, .. } = outgoing;
    let within = deadline.saturating_duration_since(Instant::now());
    if within.is_zero() {
        return Err(Error::new(ErrorKind::Timeout, "the deadline had passed before the request was sent"));
    }
    bus.check(&message)?;
    let ask = async {
        let mut replies = bus.transport().requests().call(message, within).await?;
        match replies.next().await {
            Some(first) => {
                let answer = Answer::new(first?, replies, deadline);
                // The deadline has passed on both sides, so this is the caller's own timeout.
                let late_too = answer.code() == Code::DeadlineExceeded && Instant::now() >= deadline;
                if late_too { Err(late()) } else { Ok(answer) }
            }
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "the service disconnected without an answer; send the request again",
            )),
        }
    };
    tokio::time::timeout_at(deadline, ask).await.unwrap_or_else(|_| Err(late()))
}
