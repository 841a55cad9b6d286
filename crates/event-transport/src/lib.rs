//! The contract between programs and a message broker: messages, deliveries, confirmations, and the traits that every
//! transport implements. Services use it through `event-client`, which exports all of it; a transport depends on
//! this crate alone.
//!
//! The `event-conformance` suite tests every sentence of the contract that contains *must*.
//!
//! | to | see |
//! |---|---|
//! | implement a transport | [`Transport`], [`Requests`], [`Admin`], [`Capabilities`] |
//! | read the options of a URL | [`url::BusUrl`], [`Provision`] |
//! | set the options of `memory:` | [`memory_docs`] |
//! | pass messages to a consumer | [`subscription::Subscription::channel`], [`delivery::Delivery`] |
//! | see a transport that is complete | the folder `memory/` of this crate: the reference for what every transport means |
//!
//! # For authors of transports
//!
//! These modules save work for a transport; programs do not need them.
//!
//! | module | purpose |
//! |---|---|
//! | [`backoff`] | pauses between attempts to connect |
//! | [`bounds`] | arithmetic with the durations of callers, which cannot overflow |
//! | [`cloudevents`], [`headers`], [`rfc3339`] | a message as headers and body, with the names that all brokers share |
//! | [`diagnosis`] | findings of a check of the server |
//! | [`key_queue`] | order per key among the unsettled messages of one consumer |
//! | [`options_page`] | compares the page of options with the parser, in a test |
//! | [`outage`] | reports that fetching is interrupted, once |
//! | [`supervise`], [`sync`] | panics in tasks of the transport, and locks after a panic |
//! | [`telemetry`] | names of metrics and labels |
//! | [`topology`] | compares an existing group with the required one |

mod admin;
pub mod backoff;
pub mod bounds;
mod capabilities;
pub mod cloudevents;
pub mod confirm;
mod contract;
pub mod delivery;
pub mod diagnosis;
pub mod error;
pub mod headers;
pub mod key_queue;
mod memory;
#[doc = include_str!("memory/docs.md")]
pub mod memory_docs {}
pub mod message;
pub mod options_page;
pub mod outage;
mod provision;
mod requests;
pub mod rfc3339;
pub mod status;
pub mod subject;
mod subscribe;
pub mod subscription;
pub mod supervise;
pub mod sync;
#[cfg(feature = "testing")]
pub mod tasks;
pub mod telemetry;
pub mod topology;
pub mod url;

pub use admin::{Admin, DeadLetter, DeadLetterFilter, GroupStatus};
pub use bounds::LONGEST;
pub use capabilities::Capabilities;
pub use contract::{Receipt, Transport};
pub use diagnosis::{Finding, Severity};
pub use error::{Error, ErrorKind, Result};
pub use memory::{MemoryConfig, MemoryTransport};
pub use provision::Provision;
pub use requests::{
    Frame, HEALTH_SUBJECTS, IncomingRequest, Replies, Requests, Respond, Responder, Serve, is_health,
};
pub use subscribe::{Mode, Start, Subscribe, consumer_name};
pub use topology::{Action, Change, Difference, GroupNeed, Topology};
