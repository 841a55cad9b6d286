//! The contract between this crate and a message broker: the traits that every transport implements. Its home is the
//! crate `event-transport`, on which a transport depends.

mod connect;
pub mod docs;

pub use connect::{open, register};
pub use event_transport::{
    Action, Admin, Capabilities, Change, DeadLetter, DeadLetterFilter, Difference, Finding, Frame, GroupNeed,
    GroupStatus, IncomingRequest, MemoryConfig, MemoryTransport, Mode, Provision, Receipt, Replies, Requests,
    Respond, Responder, Serve, Severity, Start, Subscribe, Topology, Transport,
};
pub use transport_sqlite::SqliteTransport;
