//! The error type of this crate: a kind, a message and a cause.

use std::fmt;

/// A failure to start or stop a process. The text names the key, file, variable or address.
#[derive(thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kind of an error: a caller decides by it how to react.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A configuration file could not be read.
    Unreadable,
    /// A configuration file is not TOML.
    Syntax,
    /// A key that no setting has; the message suggests the most similar one.
    UnknownKey,
    /// A value that is not valid for its key.
    InvalidValue,
    /// A key without a default is not set.
    MissingKey,
    /// The address to listen on is in use by another process.
    AddressInUse,
    /// The address to listen on is reachable from other machines, and the settings do not allow that.
    NotLoopback,
    /// The address to listen on cannot be bound for another reason.
    Bind,
    /// The server of a listener failed.
    Serve,
    /// Telemetry could not be set up, or is already set up.
    Telemetry,
    /// The handlers of the stop signals could not be installed.
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

    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Writes the message and its causes, because `fn main() -> Result<(), Error>` prints an error with `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_a_sentence_with_its_causes() {
        let error =
            Error::new(Kind::Bind, "cannot listen on 127.0.0.1:80").because(std::io::Error::other("denied"));
        assert_eq!(format!("{error:?}"), "cannot listen on 127.0.0.1:80: denied");
    }
}
