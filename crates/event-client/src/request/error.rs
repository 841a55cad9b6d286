//! The errors of a call, distinguished as far as the caller can react to them.

use std::fmt;
use std::time::Duration;

use super::{NoError, ReplyError};
use crate::status::{Code, Status};
use event_transport::error::{Error, ErrorKind};

/// The reason why a call failed; `E` is the request's own error type.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E = NoError> {
    /// The service answered with the request's own error.
    Remote(E),
    /// The service answered with a canonical status.
    Status(Status),
    /// No answer arrived within the deadline; the service may have done the work.
    Deadline {
        /// The requested subject.
        subject: &'static str,
        /// The time limit of the call.
        within: Duration,
    },
    /// No service serves the subject. This is certain, and the call fails at once.
    NoResponder {
        /// The requested subject.
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
    /// Returns the canonical code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Remote(error) => error.code(),
            Self::Status(status) => status.code,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::NoResponder { .. } => Code::Unavailable,
            Self::Bus(error) => error.kind().into(),
        }
    }

    /// Converts the error into a status, which a service can return to its own caller.
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
                write!(
                    f,
                    "the request to `{subject}` was not sent: the deadline of the request being handled has passed"
                )
            }
            Self::Deadline { subject, within } => write!(f, "`{subject}` did not answer within {within:?}"),
            Self::NoResponder { subject } => {
                write!(f, "no service serves `{subject}`; is the service running on this bus?")
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
