//! Tower layers for services (around every message they handle) and for clients (around every request they send).
//!
//! ```no_run
//! use event_client::layers::{CircuitBreaker, MetricsLayer, RateLimit, Retry, Timeout, TraceLayer};
//! # use std::time::Duration;
//! # use event_client::{Bus, Event, event::JsonSchema, service::{Msg, Service}};
//! # #[derive(Event, serde::Serialize, serde::Deserialize, JsonSchema)]
//! # #[event(name = "orders.placed", version = 1)] struct OrderPlaced {}
//! # async fn charge(Msg(_): Msg<OrderPlaced>) {}
//! # async fn doc(bus: Bus) -> event_client::Result<()> {
//! let service = Service::new("billing").bus(bus.clone()).on(charge);
//! service.layer((TraceLayer, MetricsLayer, Timeout::new(Duration::from_secs(10)))).start().await?;
//!
//! let bound = Timeout::new(Duration::from_millis(300));
//! let client = bus.client().layer((MetricsLayer, CircuitBreaker::new(), Retry::attempts(3), bound));
//! # Ok(()) }
//! ```
//!
//! In a tuple the first layer is the outermost. A sensible order is: trace, metrics, deduplicate, circuit breaker,
//! rate and concurrency limits, retry, timeout. A breaker outside the timeout counts timeouts as failures, and with a
//! retry outside the timeout each attempt has its own time limit.
//!
//! A layer of your own is any [`tower::Layer`]. To work for both services and clients, it is generic over an
//! [`Operation`] and its [`Classify`] result.

mod admission;
mod circuit_breaker;
mod concurrency_limit;
mod deduplicate;
mod error;
mod metrics;
mod operation;
mod rate_limit;
mod registry;
mod retry;
mod timeout;
mod trace;

pub use circuit_breaker::{CircuitBreaker, CircuitCell, CircuitState, CircuitStore, MemoryCircuits};
pub use concurrency_limit::ConcurrencyLimit;
pub use deduplicate::Deduplicate;
pub(crate) use error::of_layer;
pub use metrics::MetricsLayer;
pub use operation::{Class, Classify, Kind, Operation};
pub use rate_limit::RateLimit;
pub use retry::Retry;
pub use timeout::Timeout;
pub use trace::TraceLayer;
