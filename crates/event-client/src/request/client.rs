//! A client: the way out of a request, with layers around it.

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

/// A request on its way through a client's layers to the bus.
///
/// Cloning is cheap enough for a layer that asks twice: the payload is shared, and a repeat keeps its id.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(crate) message: Message,
    pub(crate) context: Context,
    pub(crate) deadline: Instant,
    pub(crate) idempotent: bool,
    pub(crate) system: &'static str,
}

impl Outgoing {
    /// The message as it will travel.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Correlation and cause, and the span that asks.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// When the answer must be here.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The name of the transport that it will take.
    pub fn system(&self) -> &'static str {
        self.system
    }

    /// Whether asking twice is harmless.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}

/// The tower service that a client's layers wrap: one request in, its answer out.
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

    /// Wraps the way out; the last layer added is the outermost, in a tuple the first.
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

    /// Asks; await the returned builder for the answer.
    pub fn request<T: Request>(&self, request: T) -> Call<'_, T> {
        Call::new(Door::Client(self), request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("bus", &self.bus).finish_non_exhaustive()
    }
}

/// Where a call goes out.
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
                // Layers may wait (for a permit, for a repeat); the deadline is theirs too.
                let answer = tokio::time::timeout_at(until, client.service.clone().oneshot(outgoing)).await;
                answer.unwrap_or_else(|_| Err(late()))
            }
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "no answer came in time")
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
                // Both sides saw the same deadline pass; it is the caller's own.
                let late_too = answer.code() == Code::DeadlineExceeded && Instant::now() >= deadline;
                if late_too { Err(late()) } else { Ok(answer) }
            }
            None => {
                Err(Error::new(ErrorKind::Unavailable, "the service went away without an answer; ask again"))
            }
        }
    };
    tokio::time::timeout_at(deadline, ask).await.unwrap_or_else(|_| Err(late()))
}
