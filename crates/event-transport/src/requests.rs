//! Request and reply: one member of a service replies to each request, with one frame or with several.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Headers, Message};
use crate::status::Status;
use crate::subject::Subject;

/// The request/reply interface of a transport.
///
/// Requests are not stored durably: they are in memory or, where another process must read them, stored until their
/// deadline. The members of a service share the requests evenly.
pub trait Requests: Send + Sync {
    /// Sends `request` to one member that serves its subject.
    ///
    /// Must return [`ErrorKind::NoResponder`](crate::ErrorKind::NoResponder) at once when no member serves the subject,
    /// and must send `within` to the server. Dropping the replies cancels the request at the server. When `within` has
    /// passed, the replies must end with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout); when the server drops the
    /// request or ends before the last frame, with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>>;

    /// Serves subjects as one member of a service until the returned receiver is closed or dropped.
    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>>;
}

/// The service and the subjects that a member serves.
#[derive(Clone, Debug)]
pub struct Serve {
    /// The service's name, shared by its members.
    pub service: SmolStr,
    /// The service's version, for tools that list services: a semantic version; `None` is reported as `0.0.0`.
    pub version: Option<SmolStr>,
    /// The subjects that it serves.
    pub subjects: Vec<Subject>,
    /// The highest number of requests handled at a time; further callers wait for another member or for their deadline.
    pub max_in_flight: usize,
}

impl Serve {
    /// A member of a service without a version.
    pub fn new(service: impl Into<SmolStr>, subjects: Vec<Subject>, max_in_flight: usize) -> Self {
        Self { service: service.into(), version: None, subjects, max_in_flight }
    }
}

/// One frame of a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Headers; they contain the status code and text of an error.
    pub headers: Headers,
    /// MIME type of `payload`.
    pub content_type: SmolStr,
    /// The body.
    pub payload: Bytes,
    /// Whether it is the last frame of the reply.
    pub last: bool,
}

impl Frame {
    /// A last frame without an error and without a value.
    pub fn end() -> Self {
        Self { headers: Headers::new(), content_type: SmolStr::default(), payload: Bytes::new(), last: true }
    }

    /// A last frame with a status.
    pub fn status(status: &Status) -> Self {
        let mut frame = Self::end();
        Status::write(status.code, &status.message, &mut frame.headers);
        frame
    }

    /// The number of bytes it takes in a transport's buffer: payload, content type and headers, as [`Message::size`]
    /// counts them.
    #[inline]
    pub fn size(&self) -> usize {
        self.payload.len()
            + self.content_type.len()
            + self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

/// The frames of one reply, in order. It ends after the last frame; an earlier end means that the server has ended.
pub struct Replies {
    frames: mpsc::Receiver<Result<Frame>>,
    _guard: Option<tokio_util::sync::DropGuard>,
}

impl Replies {
    /// Replies with the frames from `frames`; `gone` is cancelled when the caller drops the replies.
    pub fn new(frames: mpsc::Receiver<Result<Frame>>, gone: Option<CancellationToken>) -> Self {
        Self { frames, _guard: gone.map(CancellationToken::drop_guard) }
    }

    /// Waits for the next frame; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Frame>> {
        self.frames.recv().await
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").finish_non_exhaustive()
    }
}

/// A request that a server has received.
#[derive(Debug)]
pub struct IncomingRequest {
    /// The request.
    pub message: Arc<Message>,
    /// The time from the arrival of the request to the caller's deadline.
    pub within: Duration,
    /// Sends the reply.
    pub responder: Responder,
}

/// Sends the frames of one reply. Dropping it before the last frame ends the reply with an error.
///
/// A frame that is larger than the transport's limit ends the reply: the caller receives the status
/// `RESOURCE_EXHAUSTED` at once, and the sender receives [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge).
pub struct Responder {
    respond: Option<Box<dyn Respond>>,
    gone: CancellationToken,
    largest: usize,
    refused: Option<Status>,
}

/// The sending interface behind a [`Responder`], which a transport implements.
pub trait Respond: Send + Sync + 'static {
    /// Sends a frame. No frame follows one with `last`. The confirmation resolves when the transport has room for
    /// another frame: a frame that is sent earlier may be refused with [`ErrorKind::Full`](crate::ErrorKind::Full).
    fn send(&mut self, frame: Frame) -> Confirm<()>;

    /// Called when the server drops the request before the last frame of its reply.
    fn abandoned(&mut self);
}

impl Responder {
    /// A responder for frames of at most `largest` bytes; `gone` is cancelled when the caller no longer waits.
    pub fn new(respond: Box<dyn Respond>, gone: CancellationToken, largest: usize) -> Self {
        Self { respond: Some(respond), gone, largest, refused: None }
    }

    /// Changes the largest frame size in bytes.
    pub fn set_largest(&mut self, bytes: usize) {
        self.largest = bytes;
    }

    /// Checks the size of a frame.
    #[inline]
    pub fn check(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.size();
        if bytes <= self.largest {
            return Ok(());
        }
        let text = format!(
            "the reply has {bytes} bytes, the bus accepts at most {}; reply in chunks or with a reference to the data, or raise `max_payload`",
            self.largest
        );
        Err(Error::new(ErrorKind::TooLarge, text).during("reply"))
    }

    /// Sends a frame; after the last one further frames are ignored.
    pub fn send(&mut self, frame: Frame) -> Confirm<()> {
        let Some(mut respond) = self.respond.take() else { return Confirm::ready(Ok(())) };
        if let Err(error) = self.check(&frame) {
            let status = Status::from(&error);
            drop(respond.send(Frame::status(&status)));
            self.refused = Some(status);
            return Confirm::ready(Err(error));
        }
        let last = frame.last;
        let confirm = respond.send(frame);
        if !last {
            self.respond = Some(respond);
        }
        confirm
    }

    /// The status that ended the reply instead of a frame that was too large.
    #[inline]
    pub fn refused(&self) -> Option<&Status> {
        self.refused.as_ref()
    }

    /// Cancelled when the caller no longer waits or its deadline has passed.
    #[inline]
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(mut respond) = self.respond.take() {
            respond.abandoned();
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}

/// The start of the subjects on which services answer health requests.
pub const HEALTH_SUBJECTS: &str = "sys.health.";

/// Whether a subject is for health requests, which the library answers and not a handler.
pub fn is_health(subject: &Subject) -> bool {
    subject.as_str().starts_with(HEALTH_SUBJECTS)
}
