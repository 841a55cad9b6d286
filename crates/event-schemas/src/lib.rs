//! The shared events of the reference systems, one file per domain, tested against `schemas/`.
//!
//! [`catalog`] lists every version of every event. The files under `schemas/` are generated from it: a JSON
//! Schema per version for readers in any language, and golden samples in JSON and MessagePack that every
//! later version of this code must still decode.

pub mod chat;
pub mod edge;
pub mod files;
pub mod orders;
pub mod platform;

mod catalog;
mod envelope;
mod golden;
mod logs;
mod sample;

pub use catalog::{Entry, catalog};
pub use golden::{Drift, check, generate};
pub use sample::Sample;
