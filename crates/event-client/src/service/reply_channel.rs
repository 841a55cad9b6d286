//! The exchange of one request: the responder to its caller, and the answer that waits until the layers have
//! finished.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::route::Endpoint;
use crate::codec::Codec;
use crate::confirm::Confirm;
use crate::message::Headers;
use crate::request::ReplyError;
use crate::status::{Code, STATUS_DETAILS, Status};
use crate::transport::{Frame, Responder};
use event_transport::error::Result;
use event_transport::sync::lock;

/// The state of one request, shared by the server, the handler and a streaming handler's sink.
pub struct Exchange {
    responder: Mutex<Responder>,
    /// The handler's answer; sent after the layers have finished, so that a retry layer can call the handler again.
    answer: Mutex<Option<Frame>>,
    /// Whether a chunk has been sent: from then on the answer cannot be withdrawn.
    streamed: AtomicBool,
    gone: CancellationToken,
    codec: Codec,
    pub(crate) endpoint: Endpoint,
}

impl Exchange {
    pub(crate) fn new(responder: Responder, codec: Codec, endpoint: Endpoint) -> Self {
        let gone = responder.gone().clone();
        Self {
            responder: Mutex::new(responder),
            answer: Mutex::new(None),
            streamed: AtomicBool::new(false),
            gone,
            codec,
            endpoint,
        }
    }

    /// Returns the token that is cancelled when the caller no longer waits.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Whether the request may be handled again.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.endpoint.idempotent && !self.streamed.load(Ordering::Relaxed)
    }

    /// Stores the frame that will end the answer.
    pub(crate) fn keep(&self, frame: Frame) {
        *lock(&self.answer) = Some(frame);
    }

    /// Takes the frame that was stored last.
    pub(crate) fn kept(&self) -> Option<Frame> {
        lock(&self.answer).take()
    }

    fn responder(&self) -> MutexGuard<'_, Responder> {
        lock(&self.responder)
    }

    /// Sends a frame at once.
    pub(crate) fn send(&self, frame: Frame) -> Confirm<()> {
        if !frame.last {
            self.streamed.store(true, Ordering::Relaxed);
        }
        self.responder().send(frame)
    }

    /// Checks whether the bus accepts this frame; otherwise returns the status to send to the caller.
    pub(crate) fn fits(&self, frame: &Frame) -> std::result::Result<(), Status> {
        self.responder().check(frame).map_err(|error| Status::from(&error))
    }

    /// Returns the status that was sent to the caller when a chunk was too large.
    pub(crate) fn refused(&self) -> Option<Status> {
        self.responder().refused().cloned()
    }

    /// Creates a frame with a value, in the encoding that the caller used.
    pub(crate) fn value<T: Serialize>(&self, value: &T, last: bool) -> Result<Frame> {
        let mut payload = Vec::new();
        self.codec.encode(value, &mut payload)?;
        let content_type = SmolStr::new_static(self.codec.content_type());
        Ok(Frame { headers: Headers::new(), content_type, payload: payload.into(), last })
    }

    /// Creates the frame that ends an answer with a status.
    pub(crate) fn status(&self, status: &Status) -> Frame {
        let mut frame = status.details.as_ref().map_or_else(Frame::end, |details| {
            let mut frame = self.value(details, true).unwrap_or_else(|_| Frame::end());
            frame.headers.set(STATUS_DETAILS, "details").expect("a valid header");
            frame
        });
        Status::write(status.code, &status.message, &mut frame.headers);
        frame
    }

    /// Creates the frame that ends an answer with the request's own error.
    pub(crate) fn error<E: ReplyError>(&self, error: &E) -> Frame {
        match self.value(error, true) {
            Ok(mut frame) => {
                // The caller would read an error with the code `OK` as a success.
                let code = if error.code() == Code::Ok { Code::Unknown } else { error.code() };
                Status::write(code, &error.to_string(), &mut frame.headers);
                frame.headers.set(STATUS_DETAILS, "error").expect("a valid header");
                frame
            }
            Err(unwritten) => {
                self.status(&Status::internal(smol_str::format_smolstr!("{error} ({unwritten})")))
            }
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("served", &self.endpoint).finish_non_exhaustive()
    }
}
