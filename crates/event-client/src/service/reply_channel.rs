//! One request being answered: the way back to its caller, and the answer that waits for the layers to finish.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::extract::Endpoint;
use crate::codec::Codec;
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::Headers;
use crate::request::ReplyError;
use crate::status::{Code, STATUS_DETAILS, Status};
use crate::transport::{Frame, Responder};

/// Shared by the server, the handler and a streaming handler's sink.
pub struct Exchange {
    responder: Mutex<Responder>,
    /// The handler's answer; sent when the layers around it agree, so that a retry layer may ask again.
    answer: Mutex<Option<Frame>>,
    /// A chunk has been sent: from here on nothing can be taken back.
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

    /// Cancelled when the caller has gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Whether the work may be done once more.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.endpoint.idempotent && !self.streamed.load(Ordering::Relaxed)
    }

    /// Keeps the frame that will end the answer.
    pub(crate) fn keep(&self, frame: Frame) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
    }

    /// The frame that was kept last.
    pub(crate) fn kept(&self) -> Option<Frame> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn responder(&self) -> MutexGuard<'_, Responder> {
        self.responder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame at once.
    pub(crate) fn send(&self, frame: Frame) -> Confirm<()> {
        if !frame.last {
            self.streamed.store(true, Ordering::Relaxed);
        }
        self.responder().send(frame)
    }

    /// Whether the bus takes this frame; the status that the caller is to be told when it does not.
    pub(crate) fn fits(&self, frame: &Frame) -> std::result::Result<(), Status> {
        self.responder().check(frame).map_err(|error| Status::from(&error))
    }

    /// The status that the caller was told when a chunk was too large.
    pub(crate) fn refused(&self) -> Option<Status> {
        self.responder().refused().cloned()
    }

    /// A frame with a value, in the encoding that the caller used.
    pub(crate) fn value<T: Serialize>(&self, value: &T, last: bool) -> Result<Frame> {
        let mut payload = Vec::new();
        self.codec.encode(value, &mut payload)?;
        let content_type = SmolStr::new_static(self.codec.content_type());
        Ok(Frame { headers: Headers::new(), content_type, payload: payload.into(), last })
    }

    /// The frame that ends an answer with a status.
    pub(crate) fn status(&self, status: &Status) -> Frame {
        let mut frame = status.details.as_ref().map_or_else(Frame::end, |details| {
            let mut frame = self.value(details, true).unwrap_or_else(|_| Frame::end());
            frame.headers.set(STATUS_DETAILS, "details").expect("a valid header");
            frame
        });
        Status::write(status.code, &status.message, &mut frame.headers);
        frame
    }

    /// The frame that ends an answer with the request's own error.
    pub(crate) fn error<E: ReplyError>(&self, error: &E) -> Frame {
        match self.value(error, true) {
            Ok(mut frame) => {
                // An error that succeeds would be lost on its way.
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
