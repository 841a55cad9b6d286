//! Request and reply: one member of a service answers, at once or in several frames.

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

/// The call door of a transport.
///
/// Requests are not stored: they live in memory or, where another process must see them, no longer than their
/// deadline. Members of a service share requests evenly.
pub trait Requests: Send + Sync {
    /// Sends `request` to one member that serves its subject.
    ///
    /// Must answer [`ErrorKind::NoResponder`](crate::ErrorKind::NoResponder) at once when nobody serves it, and must carry `within`
    /// to the server. Dropping the replies tells the server that nobody waits any more. When `within` has passed
    /// the replies must end with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout); when the server lets go of the request or
    /// goes away before the last frame, with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>>;

    /// Serves subjects as one member of a service until the returned value is dropped or stopped.
    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>>;
}

/// What to serve.
#[derive(Clone, Debug)]
pub struct Serve {
    /// The service's name, shared by its members.
    pub service: SmolStr,
    /// The service's version, for tools that list services: a semantic version; without one `0.0.0` is told.
    pub version: Option<SmolStr>,
    /// The subjects it answers.
    pub subjects: Vec<Subject>,
    /// Most requests taken at a time; beyond it callers wait for another member or for their deadline.
    pub max_in_flight: usize,
}

impl Serve {
    /// A member of a service without a version.
    pub fn new(service: impl Into<SmolStr>, subjects: Vec<Subject>, max_in_flight: usize) -> Self {
        Self { service: service.into(), version: None, subjects, max_in_flight }
    }
}

/// One frame of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Status code and text of an error travel here.
    pub headers: Headers,
    /// MIME type of `payload`.
    pub content_type: SmolStr,
    /// The bytes.
    pub payload: Bytes,
    /// Nothing comes after it.
    pub last: bool,
}

impl Frame {
    /// Ends an answer without an error and without a value.
    pub(crate) fn end() -> Self {
        Self { headers: Headers::new(), content_type: SmolStr::default(), payload: Bytes::new(), last: true }
    }

    /// Ends an answer with a status.
    pub(crate) fn status(status: &Status) -> Self {
        let mut frame = Self::end();
        Status::write(status.code, &status.message, &mut frame.headers);
        frame
    }

    /// Bytes it takes in a transport's buffer: payload, headers and names, as [`Message::size`] counts them.
    pub fn size(&self) -> usize {
        self.payload.len()
            + self.content_type.len()
            + self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

/// The frames of one answer, in order. Ends after the last frame; an early end means that the server went away.
pub struct Replies {
    frames: mpsc::Receiver<Result<Frame>>,
    _guard: Option<tokio_util::sync::DropGuard>,
}

impl Replies {
    /// Frames from `frames`; `gone` is cancelled when the caller stops waiting.
    pub fn new(frames: mpsc::Receiver<Result<Frame>>, gone: Option<CancellationToken>) -> Self {
        Self { frames, _guard: gone.map(CancellationToken::drop_guard) }
    }

    /// The next frame; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Frame>> {
        self.frames.recv().await
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").finish_non_exhaustive()
    }
}

/// A request in a server's hands.
#[derive(Debug)]
pub struct IncomingRequest {
    /// The request.
    pub message: Arc<Message>,
    /// What is left of the caller's patience on arrival.
    pub within: Duration,
    /// Answers it.
    pub responder: Responder,
}

/// Sends the frames of one answer. Dropped before the last frame, it answers with an error by itself.
///
/// A frame that is larger than the bus takes ends the answer: the caller gets the status `RESOURCE_EXHAUSTED` at
/// once, and the sender [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge).
pub struct Responder {
    respond: Option<Box<dyn Respond>>,
    gone: CancellationToken,
    largest: usize,
    refused: Option<Status>,
}

/// The transport's side of a [`Responder`].
pub trait Respond: Send + Sync + 'static {
    /// Sends a frame. After one with `last` no other follows. The confirmation comes when the transport has room
    /// for another frame: a sender that does not wait for it may be refused with
    /// [`ErrorKind::Full`](crate::ErrorKind::Full).
    fn send(&mut self, frame: Frame) -> Confirm<()>;

    /// The server dropped the request without finishing its answer.
    fn abandoned(&mut self);
}

impl Responder {
    /// A responder of frames of at most `largest` bytes; `gone` is cancelled when the caller no longer waits.
    pub fn new(respond: Box<dyn Respond>, gone: CancellationToken, largest: usize) -> Self {
        Self { respond: Some(respond), gone, largest, refused: None }
    }

    /// Bounds its frames anew.
    pub(crate) fn set_largest(&mut self, bytes: usize) {
        self.largest = bytes;
    }

    /// Whether the bus takes a frame of this size.
    pub(crate) fn check(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.size();
        if bytes <= self.largest {
            return Ok(());
        }
        let text = format!(
            "the answer takes {bytes} bytes, the bus takes at most {}; answer in chunks or with a reference to the data, or raise `max_payload`",
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

    /// The status that ended the answer instead of a frame that was too large.
    pub(crate) fn refused(&self) -> Option<&Status> {
        self.refused.as_ref()
    }

    /// Cancelled when the caller has gone or its deadline has passed.
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
