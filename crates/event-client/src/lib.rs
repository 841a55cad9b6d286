//! Typed events, requests and log shipping over one messaging contract.

pub mod confirm;
pub mod delivery;
mod error;
pub mod message;
pub mod subject;
pub mod subscription;
pub mod transport;
pub mod url;

pub use error::{Error, ErrorKind, Result};
