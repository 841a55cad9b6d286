//! The errors of starting and controlling a server, with advice in their text.

use std::fmt;
use std::io;

/// A failure to start or control a server. The text contains the remedy; [`kind`](Error::kind) is for code.
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
    /// A program is not installed; the text contains the command that installs it.
    Missing,
    /// The server ended, or was not ready in time; the text contains the end of its log.
    Start,
    /// The server did not end in time, or did not answer in time.
    Control,
    /// This generation of the server, or this machine, does not support one of the options.
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

    /// Returns the kind of the failure.
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
