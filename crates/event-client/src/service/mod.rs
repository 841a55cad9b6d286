//! Services: handlers on a bus, with layers around them, started and drained together.
//!
//! ```no_run
//! use event_client::service::{Attempt, Emitter, Handler, Msg, Service, State};
//! use event_client::Event;
//! # use event_client::event::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//!
//! #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! #[event(name = "orders.placed", version = 1, key = order_id)]
//! struct OrderPlaced { order_id: u64, cents: i64 }
//! # #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! # #[event(name = "orders.paid", version = 1, key = order_id)]
//! # struct OrderPaid { order_id: u64 }
//! # #[derive(Clone)] struct Gateway;
//! # impl Gateway { async fn charge(&self, _: u64, _: i64, _: &str) -> std::io::Result<()> { Ok(()) } }
//!
//! async fn charge(
//!     State(gateway): State<Gateway>,
//!     attempt: Attempt,
//!     out: Emitter,
//!     Msg(order): Msg<OrderPlaced>,
//! ) -> anyhow_free::Result<()> {
//!     gateway.charge(order.order_id, order.cents, attempt.idempotency_key()).await?; // Err: backoff, then dead letter
//!     out.emit(OrderPaid { order_id: order.order_id }).await?;           // cause, correlation and trace filled in
//!     Ok(())
//! }
//! # mod anyhow_free { pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>; }
//!
//! # async fn run() -> event_client::Result<()> {
//! Service::from_env("billing").await?
//!     .on(charge.concurrency(32).keyed())
//!     .with_state(Gateway)
//!     .run_until(async { tokio::signal::ctrl_c().await.unwrap() })
//!     .await
//! # }
//! ```

mod batch;
mod confirmed;
mod extract;
mod handler;
mod health;
mod incoming;
mod outcome;
mod reply;
mod reply_channel;
mod reply_stream;
mod retry;
mod route;
mod running;
mod server;
mod source;
mod start;
mod stats;
mod topology;
mod versions;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tower::util::BoxCloneSyncService;
use tower_layer::Layer;

pub use event_macros::debug_handler;

pub use batch::{Batch, BatchHandler, Batched, Batching, FromBatch, IntoOutcomes, Item};
pub use extract::{
    Attempt, Deadline, Dynamic, Emitter, FromIncoming, FromPayload, FromRef, Meta, Msg, Raw, State,
};
pub use handler::{Configured, Handler, HandlerOptions};
pub use incoming::{Identity, Incoming};
pub use outcome::{IntoOutcome, Outcome, OutcomeKind, Permanent, RetryAfter};
pub use reply::{AnswerTo, IntoReplyError, OneWay, ReplyFailure, Req, RequestHandler};
pub use reply_stream::ReplySink;
pub use retry::RetryPolicy;
pub use route::{Endpoint, Route};
pub use running::{Running, ServiceHandle};
pub use stats::{Counts, Stats};
pub use versions::Versions;
#[cfg(feature = "testing")]
pub(crate) use worker::Observer;

use crate::bus::Bus;
use crate::subject::Pattern;
use crate::transport::IncomingRequest;
use event_transport::error::{Error, Result};
use source::Taker;
use worker::HandlerRuntime;

/// The tower service that layers wrap: it takes one message and returns its outcome.
pub type BoxService = BoxCloneSyncService<Incoming, Outcome, Error>;

/// Handlers that share a name, a bus and a state of type `S`.
///
/// Every handler has its own durable group, `<service>.<event>`: when several handlers of one service take the same
/// event, each of them receives it, and each fails and retries independently.
pub struct Service<S = ()> {
    name: SmolStr,
    bus: Option<Bus>,
    handlers: Vec<Registration<S>>,
    retry: RetryPolicy,
    drain: Duration,
    observer: Option<Arc<dyn worker::Observer>>,
    version: Option<SmolStr>,
}

struct Registration<S> {
    route: Result<Route>,
    request: Option<Endpoint>,
    versions: Option<Versions>,
    options: HandlerOptions,
    open: Box<dyn FnOnce(Arc<S>) -> Box<dyn Work> + Send>,
}

/// A handler with all its layers, ready to run on a subscription.
trait Work: Send {
    fn spawn(self: Box<Self>, slots: usize, runtime: Arc<HandlerRuntime>, events: Taker) -> JoinSet<()>;
    fn serve(
        self: Box<Self>,
        slots: usize,
        runtime: Arc<HandlerRuntime>,
        endpoint: Endpoint,
        inbox: mpsc::Receiver<IncomingRequest>,
    ) -> JoinSet<()>;
    /// Boxes the handler for one more layer. This costs a box for each message, so a handler without layers is not
    /// boxed.
    fn boxed(self: Box<Self>) -> BoxService;
}

impl<T> Work for T
where
    T: tower_service::Service<Incoming, Response = Outcome, Error = Error> + Clone + Send + Sync + 'static,
    T::Future: Send,
{
    fn spawn(self: Box<Self>, slots: usize, runtime: Arc<HandlerRuntime>, events: Taker) -> JoinSet<()> {
        worker::spawn(*self, slots, runtime, events)
    }

    fn serve(
        self: Box<Self>,
        slots: usize,
        runtime: Arc<HandlerRuntime>,
        endpoint: Endpoint,
        inbox: mpsc::Receiver<IncomingRequest>,
    ) -> JoinSet<()> {
        server::spawn(*self, slots, runtime, endpoint, inbox)
    }

    fn boxed(self: Box<Self>) -> BoxService {
        BoxCloneSyncService::new(*self)
    }
}

impl Service {
    /// Creates a service on a bus with the settings of the environment ([`Bus::from_env`]).
    ///
    /// # Errors
    /// The errors of [`Bus::from_env`].
    pub async fn from_env<S: Send + Sync + 'static>(name: &str) -> Result<Service<S>> {
        Ok(Service::new(name).bus(Bus::from_env(name).await?))
    }
}

impl<S: Send + Sync + 'static> Service<S> {
    /// Creates a service without a bus.
    pub fn new(name: impl Into<SmolStr>) -> Self {
        Self {
            name: name.into(),
            bus: None,
            handlers: Vec::new(),
            retry: RetryPolicy::default(),
            drain: Duration::from_secs(25),
            observer: None,
            version: None,
        }
    }

    /// Sets the version of the service, which tools that list services such as `nats micro ls` show: a semantic
    /// version, preferably `env!("CARGO_PKG_VERSION")`. The start refuses another text. Without a version the tools
    /// show `0.0.0`.
    #[must_use]
    pub fn version(mut self, version: impl Into<SmolStr>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Reports every settlement to `observer`.
    #[cfg(feature = "testing")]
    pub(crate) fn observe(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Sets the bus; events are published under the service's name.
    #[must_use]
    pub fn bus(mut self, bus: Bus) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Adds a handler; the type of its last argument defines the messages that it receives.
    #[must_use]
    pub fn on<M: 'static, H: Handler<M, S>>(self, handler: H) -> Self {
        let route = handler.route();
        let versions = handler.versions().map(Versions::by_pattern);
        self.add(route, versions, handler)
    }

    /// Adds a handler for all messages whose subject a pattern matches, for payloads such as [`Dynamic`] and [`Raw`].
    /// Several handlers on patterns need their own names: `.group("…")`.
    #[must_use]
    pub fn on_subject<M: 'static, H: Handler<M, S>>(self, pattern: &str, handler: H) -> Self {
        let name: String = pattern.chars().map(|c| if matches!(c, '*' | '>') { '_' } else { c }).collect();
        let route = Pattern::new(pattern).map(|pattern| Route { name: name.into(), filters: vec![pattern] });
        let versions = handler.versions();
        self.add(route, versions, handler)
    }

    /// Adds a handler of batches of up to `max` items; a batch starts at the latest `wait` after its first item
    /// arrived. Short for `.on(handler.batch(max, wait))`, which allows further settings.
    #[must_use]
    pub fn on_batch<M: 'static, H: BatchHandler<M, S>>(self, handler: H, max: usize, wait: Duration) -> Self {
        self.on(handler.batch(max, wait))
    }

    /// Adds a handler that answers requests; its last argument, a [`Req<T>`], defines which. The members of a service
    /// share the requests. Of the handler's settings only `.concurrency(n)` is allowed here.
    #[must_use]
    pub fn reply<M: RequestHandler + 'static, H: Handler<M, S>>(self, handler: H) -> Self {
        let route = handler.route();
        self.add(route, None, handler)
    }

    fn add<M: 'static, H: Handler<M, S>>(
        mut self,
        route: Result<Route>,
        versions: Option<Versions>,
        handler: H,
    ) -> Self {
        let options = handler.options();
        self.handlers.push(Registration {
            route,
            request: handler.request(),
            versions,
            options,
            open: Box::new(move |state| {
                Box::new(tower::service_fn(move |incoming| {
                    let handling = handler.clone().call(incoming, state.clone());
                    async move { Ok(handling.await) }
                }))
            }),
        });
        self
    }

    /// Adds a layer around every handler added so far; a tuple adds several layers, the first is the outermost.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<BoxService> + Clone + Send + 'static,
        L::Service: tower_service::Service<Incoming, Response = Outcome> + Clone + Send + Sync + 'static,
        <L::Service as tower_service::Service<Incoming>>::Error: Into<tower::BoxError>,
        <L::Service as tower_service::Service<Incoming>>::Future: Send,
    {
        self.handlers = self
            .handlers
            .into_iter()
            .map(|entry| {
                let layer = layer.clone();
                let open = entry.open;
                Registration {
                    open: Box::new(move |state| {
                        let service = layer.layer(open(state).boxed());
                        Box::new(tower::ServiceExt::map_err(service, crate::layers::of_layer))
                    }),
                    ..entry
                }
            })
            .collect();
        self
    }

    /// Sets the retry policy of handlers that have none of their own.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets the time that draining may take before unfinished work is returned to its groups. Default 25 s, which is
    /// less than the 30 s that Kubernetes grants.
    #[must_use]
    pub fn drain_within(mut self, bound: Duration) -> Self {
        self.drain = bound;
        self
    }

    /// Sets the state of the handlers.
    #[must_use]
    pub fn with_state(self, state: S) -> Service {
        let state = Arc::new(state);
        let handlers = self.handlers.into_iter().map(|entry| {
            let state = state.clone();
            let open = entry.open;
            let open: Box<dyn FnOnce(Arc<()>) -> Box<dyn Work> + Send> = Box::new(move |_| open(state));
            Registration {
                open,
                route: entry.route,
                request: entry.request,
                versions: entry.versions,
                options: entry.options,
            }
        });
        Service {
            handlers: handlers.collect(),
            name: self.name,
            bus: self.bus,
            retry: self.retry,
            drain: self.drain,
            observer: self.observer,
            version: self.version,
        }
    }
}

impl<S> fmt::Debug for Service<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("handlers", &self.handlers.len())
            .finish_non_exhaustive()
    }
}
