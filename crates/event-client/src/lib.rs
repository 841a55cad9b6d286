//! Typed events, requests and log shipping over one messaging contract.

// The derive macros name this crate by its path, here too.
#[allow(unused_extern_crates, reason = "only the derives inside this crate use the path")]
extern crate self as event_client;

pub mod bus;
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
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod url;

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
