//! The crate's one error: what failed, where, and what to do about it.

use std::{fmt, sync::Arc};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// What kind of thing went wrong, for code that wants to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store did not answer: locked for longer than the busy timeout, disk full, I/O error.
    Unavailable,
    /// The database file may not be written.
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
    /// Arguments larger than the store takes, or a result larger than it keeps.
    TooLarge,
    /// The store cannot keep this record; a task that was stored before is set aside as dead with the reason.
    Refused,
    /// The lease is gone: another worker has the task, or the store took this worker for dead.
    Fenced,
    /// The result did not come in time. The task goes on.
    Timeout,
    /// The task failed for good; the text is its last error.
    Failed,
    /// The task was cancelled.
    Cancelled,
    /// The task expired before a worker started it.
    Expired,
    /// No such task, schedule or queue (or its result is past its time to live).
    NotFound,
    /// Something with this name or unique key is there already.
    Conflict,
    /// A command's answer could not be printed.
    Output,
}

/// An error of the task queue. Cheap to clone, because one failed transaction answers many callers.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Arc<str>,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    pub(crate) fn with(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may work a little later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
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
        // The text of the direct source is part of our own, so the chain continues below it.
        self.source.as_deref().and_then(std::error::Error::source)
    }
}
