//! What can go wrong with a server, and what to do about it.

use std::fmt;
use std::io;

/// Why a server could not be had or controlled. The text says what to do; [`kind`](Error::kind) is for code.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<io::Error>,
}

/// The kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A program is not installed; the text has the line that installs it.
    Missing,
    /// The server ended, or was not ready in time; the text has the end of its log.
    Start,
    /// The server did not end in time, or its answer did not come.
    Control,
    /// This generation of the server, or this machine, cannot do what the options ask for.
    Unsupported,
    /// A file, a port or a process of the system could not be used.
    System,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    pub(crate) fn system(text: impl Into<String>, source: io::Error) -> Self {
        Self { kind: ErrorKind::System, text: text.into(), source: Some(source) }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
