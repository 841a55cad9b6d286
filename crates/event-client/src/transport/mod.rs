//! The contract between this crate and a message broker: the traits that every transport implements.
//!
//! The `event-conformance` suite tests every sentence of theirs that contains *must*.

mod admin;
mod capabilities;
mod connect;
mod contract;
#[cfg_attr(
    not(any(feature = "nats", feature = "redis", feature = "rabbitmq")),
    allow(dead_code, reason = "only the brokers use it")
)]
mod diagnosis;
pub mod docs;
mod headers;
mod key_queue;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod outage;
mod provision;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod requests;
mod sqlite;
mod subscribe;
mod topology;

pub use admin::{Admin, DeadLetter, DeadLetterFilter, GroupStatus};
pub use capabilities::Capabilities;
pub use connect::open;
pub use contract::{Receipt, Transport};
pub use diagnosis::{Finding, Severity};
pub use memory::{MemoryConfig, MemoryTransport};
pub use provision::Provision;
pub use requests::{Frame, IncomingRequest, Replies, Requests, Respond, Responder, Serve};
pub use sqlite::SqliteTransport;
pub(crate) use subscribe::consumer_name;
pub use subscribe::{Mode, Start, Subscribe};
pub use topology::{Action, Change, Difference, GroupNeed, Topology};
