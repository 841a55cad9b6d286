//! The error type of this crate: a kind, the failed operation, a message, facts about the failure and its cause.

use std::error::Error as StdError;
use std::fmt;

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of a failure, by which a caller decides how to react.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A URL, option, name or combination of settings is wrong; a retry or restart does not help.
    Config,
    /// The transport, server or build does not support the operation; the text names an alternative.
    Unsupported,
    /// A subject, pattern, group or header name breaks the naming rules.
    InvalidName,
    /// A message is larger than the transport accepts.
    TooLarge,
    /// A value could not be encoded.
    Encode,
    /// Bytes could not be decoded as the declared type or encoding.
    Decode,
    /// No handler or decoder in this process knows the type or version.
    UnknownType,
    /// No answer arrived in time; the outcome is unknown.
    Timeout,
    /// The transport, server or disk does not respond at the moment; a later attempt may succeed.
    Unavailable,
    /// A bounded buffer or the disk is full.
    Full,
    /// The lease of a delivery has passed to another consumer, which may handle the message again; its effect must be
    /// idempotent.
    LeaseLost,
    /// No member serves the requested subject.
    NoResponder,
    /// The named object does not exist.
    NotFound,
    /// Credentials or permissions do not allow the operation.
    Denied,
    /// Stored data is damaged or has an unknown format version.
    Corrupt,
    /// The bus, service or subscription has been closed.
    Closed,
    /// The responder returned an error of its own.
    Remote,
    /// A defect in this library or a panic in user code.
    Internal,
}

impl ErrorKind {
    /// The kind as lower-case text, for messages and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "configuration",
            Self::Unsupported => "unsupported",
            Self::InvalidName => "invalid name",
            Self::TooLarge => "too large",
            Self::Encode => "encode",
            Self::Decode => "decode",
            Self::UnknownType => "unknown type",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Full => "full",
            Self::LeaseLost => "lease lost",
            Self::NoResponder => "no responder",
            Self::NotFound => "not found",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
            Self::Remote => "remote",
            Self::Internal => "internal",
        }
    }
}

/// An error with the failed operation, a message, facts about the failure, and its cause.
///
/// `Display` writes `operation: message (key=value, …): cause`.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error of `kind`; `message` states the failure and the remedy, in lower case.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: "",
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Names the failed operation. The first, innermost, name stays; later calls change nothing.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        if self.0.operation.is_empty() {
            self.0.operation = operation;
        }
        self
    }

    /// Adds a fact, such as the subject or the file, unless it is there already. Do not add a secret: the text goes
    /// into logs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        let fact = (key, value.to_string());
        if !self.0.context.contains(&fact) {
            self.0.context.push(fact);
        }
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The failed operation, such as `"publish"`; empty when unknown.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Whether the same call may succeed later without any change of configuration or data.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::NoResponder
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if !inner.operation.is_empty() {
            write!(f, "{}: ", inner.operation)?;
        }
        f.write_str(&inner.message)?;
        let mut separator = " (";
        for (key, value) in &inner.context {
            write!(f, "{separator}{key}={value}")?;
            separator = ", ";
        }
        if !inner.context.is_empty() {
            f.write_str(")")?;
        }
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.kind.as_str())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` already prints the direct cause, so a printer of the error chain must continue with the source of
        // that cause.
        self.0.source.as_ref().and_then(|source| source.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_sentence() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorKind::Unavailable, "cannot write")
            .during("publish")
            .during("outer")
            .with("subject", "orders.placed.v1")
            .with("subject", "orders.placed.v1")
            .because(cause);
        assert_eq!(error.to_string(), "publish: cannot write (subject=orders.placed.v1): disk on fire");
        assert!(error.is_temporary());
    }
}
