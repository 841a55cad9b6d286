//! The error type of this crate: a kind, a message that names the key and its source, and a cause.

use std::error::Error as StdError;
use std::fmt;

/// A failure to load settings. The text names the key, file or variable; `Display` writes `message: cause`.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kind of an error: a caller decides by it how to react.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

/// Writes the same text as `Display`, because `fn main() -> Result<(), Error>` prints an error with `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` already prints the direct cause, so the chain continues below it.
        self.source.as_ref().and_then(|source| source.source())
    }
}
