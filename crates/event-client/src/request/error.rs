//! Why a call failed, as far as its caller can act on it.

use std::fmt;
use std::time::Duration;

use super::{NoError, ReplyError};
use crate::error::{Error, ErrorKind};
use crate::status::{Code, Status};

/// Why a call failed; `E` is the request's own error type.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E = NoError> {
    /// The service answered with the request's own error.
    Remote(E),
    /// The service answered with a canonical status.
    Status(Status),
    /// No answer within the deadline; the work may have been done.
    Deadline {
        /// What was asked.
        subject: &'static str,
        /// The time it was given.
        within: Duration,
    },
    /// Nobody serves the subject: certain, and known at once.
    NoResponder {
        /// What was asked.
        subject: &'static str,
    },
    /// The request could not be sent, a layer refused it, or the answer could not be read.
    Bus(Error),
}

impl<E> CallError<E> {
    pub(crate) fn new(error: Error, subject: &'static str, within: Duration) -> Self {
        match error.kind() {
            ErrorKind::Timeout => Self::Deadline { subject, within },
            ErrorKind::NoResponder => Self::NoResponder { subject },
            _ => Self::Bus(error.during("request").with("subject", subject)),
        }
    }
}

impl<E: ReplyError> CallError<E> {
    /// The canonical code that it stands for.
    pub fn code(&self) -> Code {
        match self {
            Self::Remote(error) => error.code(),
            Self::Status(status) => status.code,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::NoResponder { .. } => Code::Unavailable,
            Self::Bus(error) => error.kind().into(),
        }
    }

    /// The status that it stands for, to be passed on.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Status(status) => status.clone(),
            other => Status::new(other.code(), smol_str::format_smolstr!("{other}")),
        }
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(error) => error.fmt(f),
            Self::Status(status) => status.fmt(f),
            Self::Deadline { subject, within } if within.is_zero() => {
                write!(f, "`{subject}` was not asked: the deadline of what is being handled has passed")
            }
            Self::Deadline { subject, within } => write!(f, "`{subject}` did not answer within {within:?}"),
            Self::NoResponder { subject } => {
                write!(f, "nobody serves `{subject}`; is the service running on this bus?")
            }
            Self::Bus(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // `Display` prints the inner error itself, so chain printers start below it.
        match self {
            Self::Remote(error) => error.source(),
            Self::Bus(error) => error.source(),
            _ => None,
        }
    }
}
