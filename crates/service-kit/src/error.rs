//! The error type of this crate: a kind, a message and a cause.

use std::error::Error as StdError;
use std::fmt;

/// A failure to start or stop a process. The text names the key, file, variable or address; `Display` writes
/// `message: cause`.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kind of an error: a caller decides by it how to react.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings could not be loaded.
    Settings(settings::ErrorKind),
    /// A value of a setting is not valid; the message names the key.
    InvalidValue,
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
    /// A new error of `kind`; `message` states the failure and the remedy.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Attaches the cause.
    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<settings::Error> for Error {
    fn from(error: settings::Error) -> Self {
        Self::new(ErrorKind::Settings(error.kind()), error.to_string())
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

/// Writes the message and its causes, because `fn main() -> Result<(), Error>` prints an error with `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` already prints the direct cause, so the chain continues below it.
        self.source.as_ref().and_then(|source| source.source())
    }
}

/// Returns an error and its causes on one line, in the form `message: cause: cause`. The error types of the backbone
/// print their direct cause themselves, and their `source` continues below it, so no cause is repeated.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_a_sentence_with_its_causes() {
        let error = Error::new(ErrorKind::Bind, "cannot listen on 127.0.0.1:80")
            .because(std::io::Error::other("denied"));
        assert_eq!(format!("{error:?}"), "cannot listen on 127.0.0.1:80: denied");
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:80: denied");
    }
}
