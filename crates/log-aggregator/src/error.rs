//! The error type of this crate: its kind, its context and its cause.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of an error: a caller decides by it how to react.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is not valid; the text names it.
    Config,
    /// A query or record is not valid; the sender has to change it.
    Invalid,
    /// The queue is full: no record was stored; the caller can retry after a moment.
    Busy,
    /// The disk is full, or a day's file has reached its size limit: no record was stored.
    Full,
    /// The store cannot be read or written at the moment: it is locked, read-only, corrupt or deleted.
    Unavailable,
    /// The aggregator is shutting down.
    Closed,
}

/// An error of the aggregator. `Display` writes `message: cause`.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind`; `message` names the operation that failed or the fault, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Attaches the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the error and all its causes on one line.
    pub fn chain(&self) -> String {
        service_kit::chain(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` already prints the direct cause, so the chain continues below it.
        self.source.as_deref().and_then(StdError::source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_cause_once() {
        let text = "cannot decode";
        let cause = event_client::Error::new(event_client::ErrorKind::Decode, text)
            .because(std::io::Error::other("disk on fire"));
        let error = Error::new(ErrorKind::Unavailable, "cannot read").because(cause);
        assert_eq!(error.to_string(), "cannot read: cannot decode: disk on fire");
        assert_eq!(error.chain(), error.to_string());
    }
}
