//! The one error of this crate: a kind to act on, a sentence to read, the cause beneath.

use std::fmt;

/// Why a process could not start or stop as asked. The text names the key, file, variable or address.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A configuration file could not be read.
    Unreadable,
    /// A configuration file is not TOML.
    Syntax,
    /// A key that nothing reads; the message suggests the nearest that something does.
    UnknownKey,
    /// A value that does not fit its key.
    InvalidValue,
    /// A key that has no default and was not set.
    MissingKey,
    /// The address to listen on is taken by another process.
    AddressInUse,
    /// The address to listen on is reachable from elsewhere, which was not asked for by name.
    NotLoopback,
    /// The address to listen on cannot be had for another reason.
    Bind,
    /// The server of a listener stopped by itself.
    Serve,
    /// Telemetry could not be set up, or was set up before.
    Telemetry,
    /// The signals that ask to stop could not be watched.
    Signal,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, as far as a caller can act on it.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}
