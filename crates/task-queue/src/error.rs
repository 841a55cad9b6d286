//! Defines the crate's single error type: the failed operation, its object and, where possible, advice.

use std::{fmt, sync::Arc};

/// The result type of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// The kind of an error, for callers that handle kinds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store cannot be used now: locked for longer than the busy timeout, disk full, I/O error.
    Unavailable,
    /// The process has no permission to write the database file.
    ReadOnly,
    /// The file is not a task store, or it is damaged.
    Corrupt,
    /// The store was written by another version of this crate.
    Version,
    /// A store URL that this build cannot open, or an unknown option in it.
    Url,
    /// No client: neither `.on(&client)` nor `TaskClient::install()`.
    NotConfigured,
    /// Arguments or options that do not fit the task.
    Invalid,
    /// The arguments or headers are larger than the store's limit, or the result is larger than the size that it
    /// keeps.
    TooLarge,
    /// The store cannot keep this record. When the task was stored before, the store marks it as dead with the
    /// reason.
    Refused,
    /// The lease is lost: another worker has the task, or this worker's lease has expired in the store.
    Fenced,
    /// The result did not arrive in time. The task continues.
    Timeout,
    /// The task became a dead letter; the text is its last error.
    Failed,
    /// The task was cancelled.
    Cancelled,
    /// The task expired before a worker started it.
    Expired,
    /// The task, schedule or queue does not exist (or the result's time to live is over).
    NotFound,
    /// A record or a task kind with this name or unique key exists already.
    Conflict,
    /// A command could not print its answer.
    Output,
}

/// An error of the task queue. Cheap to clone, because the error of one failed transaction goes to many callers.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
    source: Option<Source>,
}

impl Error {
    /// A new error of `kind`; `message` states the failure and, where possible, advice.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into(), source: None }
    }

    /// Attaches the cause.
    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed a little later without any change by the caller or an operator.
    pub fn is_temporary(&self) -> bool {
        self.kind == ErrorKind::Unavailable
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

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // This error's text already contains the text of the direct source, so the chain continues below it.
        self.source.as_deref().and_then(std::error::Error::source)
    }
}
