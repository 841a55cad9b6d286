//! The answer to a request: its first frame, and the frames of a stream that may follow.

use std::fmt;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{CallError, ReplyError};
use crate::codec::Codec;
use crate::status::{Code, STATUS, STATUS_DETAILS, Status};
use crate::transport::{Frame, Replies};
use event_transport::error::{Error, ErrorKind, Result};

/// The answer to a request, as the client's layers receive it. The first frame has arrived; the other frames of a
/// stream may still be in flight.
pub struct Answer {
    first: Option<Frame>,
    rest: Replies,
    until: Instant,
}

impl Answer {
    pub(super) fn new(first: Frame, rest: Replies, until: Instant) -> Self {
        Self { first: Some(first), rest, until }
    }

    /// Returns the code of the first frame: `OK` for a reply or a chunk.
    pub fn code(&self) -> Code {
        self.first.as_ref().map_or(Code::Ok, code_of)
    }

    /// The error that arrived instead of a first chunk.
    pub(super) fn failure<E: ReplyError>(&self) -> Option<CallError<E>> {
        self.first
            .as_ref()
            .filter(|first| code_of(first) != Code::Ok)
            .and_then(|first| read::<serde::de::IgnoredAny, E>(first).err())
    }

    /// The next frame; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Frame>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        match tokio::time::timeout_at(self.until, self.rest.next()).await {
            Ok(Some(frame)) => Some(frame),
            Ok(None) => Some(Err(Error::new(
                ErrorKind::Unavailable,
                "the service disconnected before its answer was complete",
            ))),
            Err(_) => {
                Some(Err(Error::new(ErrorKind::Timeout, "the answer was not complete within the deadline")))
            }
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("code", &self.code()).finish_non_exhaustive()
    }
}

pub(super) fn code_of(frame: &Frame) -> Code {
    frame.headers.get(STATUS).map_or(Code::Ok, |text| text.parse().unwrap_or(Code::Unknown))
}

/// Decodes a frame: a value, `None` at the end of a stream, or the error that the frame carries.
pub(super) fn read<R, E>(frame: &Frame) -> std::result::Result<Option<R>, CallError<E>>
where
    R: DeserializeOwned,
    E: ReplyError,
{
    let decode = || {
        Codec::from_content_type(&frame.content_type).ok_or_else(|| {
            Error::new(ErrorKind::Decode, "the answer is neither JSON nor MessagePack")
                .with("content type", &frame.content_type)
        })
    };
    let Some(mut status) = Status::read(&frame.headers) else {
        if frame.content_type.is_empty() {
            return Ok(None);
        }
        return decode().and_then(|codec| codec.decode(&frame.payload)).map(Some).map_err(CallError::Bus);
    };
    match frame.headers.get(STATUS_DETAILS) {
        Some("error") => match decode().and_then(|codec| codec.decode(&frame.payload)) {
            Ok(error) => return Err(CallError::Remote(error)),
            // The error type is that of an older or newer version of the service; the code still describes the
            // failure.
            Err(unread) => {
                tracing::debug!(%status, error = %unread, "cannot decode an answer's typed error; using its status")
            }
        },
        Some("details") => status.details = decode().and_then(|codec| codec.decode(&frame.payload)).ok(),
        _ => {}
    }
    Err(CallError::Status(status))
}
