//! The crate's one error: what kind, during which operation, about what, and why.

use std::error::Error as StdError;
use std::fmt;

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A URL, option, name or combination of settings is wrong; starting again will not help.
    Config,
    /// The transport, server or build cannot do what was asked; the text says what would.
    Unsupported,
    /// A subject, pattern, group or header name breaks the naming rules.
    InvalidName,
    /// A message is larger than the transport takes.
    TooLarge,
    /// A value could not be encoded.
    Encode,
    /// Bytes could not be decoded as what they claim to be.
    Decode,
    /// A type or version that nobody here knows.
    UnknownType,
    /// Time ran out before an answer came; the outcome is unknown.
    Timeout,
    /// The transport, server or disk does not answer just now; a later try may succeed.
    Unavailable,
    /// A bounded buffer or the disk is full.
    Full,
    /// The lease on a delivery was lost to another consumer; its effect must be idempotent.
    LeaseLost,
    /// Nobody serves the requested subject.
    NoResponder,
    /// What was named does not exist.
    NotFound,
    /// Credentials or permissions do not allow it.
    Denied,
    /// Stored data is damaged or of a foreign version.
    Corrupt,
    /// The bus, service or subscription has been closed.
    Closed,
    /// The other side answered with an error of its own.
    Remote,
    /// A defect in this library or a panic in user code.
    Internal,
}

impl ErrorKind {
    /// Lower-case words for messages and metrics labels.
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

/// An error with the operation that failed, the facts around it, and its cause.
///
/// The text reads `operation: message (key=value, …): cause`.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error of `kind`; `message` says what happened and what to do, in lower case.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: "",
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Names the operation that failed, once: the innermost name stays.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        if self.0.operation.is_empty() {
            self.0.operation = operation;
        }
        self
    }

    /// Adds a fact, such as the subject or the file. Never a secret.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed, such as `"publish"`; empty when unknown.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Whether the same call may succeed later without anybody changing anything.
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
        // `Display` already prints the cause, so chain printers start below it.
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
            .because(cause);
        assert_eq!(error.to_string(), "publish: cannot write (subject=orders.placed.v1): disk on fire");
        assert!(error.is_temporary());
    }
}
