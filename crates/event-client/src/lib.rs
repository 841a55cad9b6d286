//! Typed events, requests and log shipping over one messaging contract.
//!
//! One URL decides where messages travel: `memory:` within a process, `sqlite:PATH` between the processes of a
//! machine. The code stays the same.
//!
//! ```
//! use event_client::service::{Emitter, Handler, Msg, Service};
//! use event_client::{Bus, Event, event::JsonSchema};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! #[event(name = "orders.placed", version = 1, key = order_id)]
//! struct OrderPlaced { order_id: u64, cents: i64 }
//!
//! #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! #[event(name = "orders.paid", version = 1, key = order_id)]
//! struct OrderPaid { order_id: u64 }
//!
//! // A plain async function: its arguments say what it needs, the last one what it receives.
//! async fn charge(out: Emitter, Msg(order): Msg<OrderPlaced>) -> event_client::Result<()> {
//!     out.emit(OrderPaid { order_id: order.order_id }).await?; // cause, correlation and trace filled in
//!     Ok(()) // an error would be retried with backoff, then kept as a dead letter
//! }
//!
//! # #[tokio::main] async fn main() -> event_client::Result<()> {
//! let bus = Bus::connect("memory:").await?;
//! let (paid, mut receipts) = tokio::sync::mpsc::unbounded_channel();
//! let thank = move |Msg(order): Msg<OrderPaid>| {
//!     let paid = paid.clone();
//!     async move { paid.send(order.order_id).unwrap_or_default() }
//! };
//! let service = Service::new("billing").bus(bus.clone()).on(charge.concurrency(32).keyed()).on(thank).start().await?;
//!
//! bus.publish(OrderPlaced { order_id: 7, cents: 100 }).await?; // returns when the bus holds it
//! assert_eq!(receipts.recv().await, Some(7));
//! service.drain().await
//! # }
//! ```
//!
//! | to | see |
//! |---|---|
//! | declare events and their versions | [`Event`] |
//! | publish: options, windows, delays | [`Bus`], [`bus::Publish`], [`bus::Window`] |
//! | handle events, one by one or in batches | [`service`], [`service::BatchHandler`] |
//! | publish in a database transaction | [`outbox`] |
//! | make effects on a database happen once | [`inbox`] |
//! | look at dead letters, replay them | [`transport::Admin`] |
#![cfg_attr(feature = "testing", doc = "| test a service with a clock that jumps | [`testing::TestBus`] |")]
//! | add a transport | [`transport::Transport`] |

// The derive macros name this crate by its path, here too.
#[allow(unused_extern_crates, reason = "only the derives inside this crate use the path")]
extern crate self as event_client;

mod bounds;
pub mod bus;
mod checked;
pub mod codec;
pub mod confirm;
pub mod context;
pub mod delivery;
pub mod envelope;
mod error;
pub mod event;
pub mod inbox;
pub mod layers;
pub mod log;
pub mod message;
pub mod outbox;
pub mod request;
pub mod service;
mod sql;
pub mod status;
pub mod subject;
pub mod subscription;
mod supervise;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod trail;
pub mod transport;
pub mod url;

pub use bounds::LONGEST;
pub use bus::Bus;
pub use error::{Error, ErrorKind, Result};
pub use event::Event;
pub use event_macros::{Event, Request};
pub use request::{CallError, Request};

/// What the derive macros need; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use smol_str::SmolStr;

    use crate::error::{Error, ErrorKind};

    pub fn key(value: &impl std::fmt::Display) -> SmolStr {
        smol_str::format_smolstr!("{value}")
    }

    pub fn unknown_version(name: &str, version: u32) -> Error {
        Error::new(ErrorKind::UnknownType, format!("no way to read `{name}` v{version}; add an upcaster"))
    }
}
