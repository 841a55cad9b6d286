//! Logs on the bus: sends the log records of services in batches to a log aggregator.
//!
//! ```no_run
//! use event_client::{Bus, log};
//! use tracing_subscriber::layer::SubscriberExt as _;
//! use tracing_subscriber::util::SubscriberInitExt as _;
//!
//! # async fn run() -> event_client::Result<()> {
//! let (layer, shipper) = log::shipping("billing");
//! tracing_subscriber::registry().with(layer).init();
//! let shipping = shipper.start(Bus::connect("sqlite:data/bus.db").await?);
//! tracing::warn!(order = 17, "card refused");
//! shipping.close(std::time::Duration::from_secs(5)).await;
//! # Ok(()) }
//! ```
//!
//! Logging never waits: a record is put into a bounded queue. When the queue is full, the records of the lowest level
//! are dropped first and counted in the next batch. The shipper's own errors are logged to the other layers only.

mod attributes;
mod layer;
mod queue;
mod record;
mod severity;
mod ship;
#[cfg(test)]
mod tests;

pub use attributes::Attributes;
pub use layer::ShippingLayer;
pub use record::{Dropped, LogBatch, LogRecord};
pub use severity::Severity;
pub use ship::{Shipper, Shipping, ShippingStats, shipping};
