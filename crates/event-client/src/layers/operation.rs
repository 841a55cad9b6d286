//! The view that layers have of the work that passes through them: `Operation` for a message or a request, and
//! `Classify` for its result, which decides whether it counts as a failure.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::message::Message;
use crate::request::{Answer, Outgoing};
use crate::service::{Incoming, Outcome};
use event_transport::error::{Error, ErrorKind};

/// The work that passes through layers: an [`Incoming`] message or an [`Outgoing`] request.
pub trait Operation: Clone + Send + 'static {
    /// The kind of work, which is also the span field `messaging.operation.type`: `process`, `serve` or `request`.
    fn kind(&self) -> Kind;

    /// The name of the work for metrics, limits and circuits: the handler's group, or the requested subject.
    fn name(&self) -> &str;

    /// The message.
    fn message(&self) -> &Message;

    /// The correlation, the cause and the trace span of the work.
    fn context(&self) -> &Context;

    /// The time after which the result is no longer needed.
    fn deadline(&self) -> Option<Instant>;

    /// Whether repeating the work is harmless.
    fn is_repeatable(&self) -> bool;

    /// The number of this attempt, from 1.
    fn attempt(&self) -> u32;

    /// The transport's name.
    fn system(&self) -> &'static str;

    /// The time since the transport stored the message, where it is known.
    fn age(&self) -> Option<Duration>;

    /// A token that is cancelled when the service drains and calls must stop waiting; `None` for requests being sent.
    fn draining(&self) -> Option<CancellationToken>;
}

/// The kind of an [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An event is handled.
    Process,
    /// A request is answered.
    Serve,
    /// A request is sent and its answer is awaited.
    Request,
}

impl Kind {
    /// Returns the name for spans and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Serve => "serve",
            Self::Request => "request",
        }
    }
}

impl Operation for Incoming {
    fn kind(&self) -> Kind {
        if self.is_request() { Kind::Serve } else { Kind::Process }
    }

    fn name(&self) -> &str {
        &self.handler().group
    }

    fn message(&self) -> &Message {
        Incoming::message(self)
    }

    fn context(&self) -> &Context {
        Incoming::context(self)
    }

    fn deadline(&self) -> Option<Instant> {
        // An event's expiry bounds only its delivery: an event that was delivered is handled. A request's caller no
        // longer waits after the deadline.
        if self.is_request() { Incoming::deadline(self) } else { None }
    }

    fn is_repeatable(&self) -> bool {
        Incoming::is_repeatable(self)
    }

    fn attempt(&self) -> u32 {
        self.info().attempt
    }

    fn system(&self) -> &'static str {
        self.bus().capabilities().name
    }

    fn age(&self) -> Option<Duration> {
        let age = jiff::Timestamp::now().duration_since(self.info().published_at?);
        Some(age.try_into().unwrap_or_default())
    }

    fn draining(&self) -> Option<CancellationToken> {
        Some(Incoming::draining(self).clone())
    }
}

impl Operation for Outgoing {
    fn kind(&self) -> Kind {
        Kind::Request
    }

    fn name(&self) -> &str {
        Outgoing::message(self).subject.as_str()
    }

    fn message(&self) -> &Message {
        Outgoing::message(self)
    }

    fn context(&self) -> &Context {
        Outgoing::context(self)
    }

    fn deadline(&self) -> Option<Instant> {
        Some(Outgoing::deadline(self))
    }

    fn is_repeatable(&self) -> bool {
        self.is_idempotent()
    }

    fn attempt(&self) -> u32 {
        1
    }

    fn system(&self) -> &'static str {
        Outgoing::system(self)
    }

    fn age(&self) -> Option<Duration> {
        None
    }

    fn draining(&self) -> Option<CancellationToken> {
        None
    }
}

/// The class of a result, as far as layers distinguish results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The call succeeded.
    Success,
    /// The operation itself is at fault: the called service works, and it would refuse the same operation again.
    Refused,
    /// The called service is at fault: the result counts towards opening a circuit, and another attempt may succeed.
    Failed,
}

/// The result of an [`Operation`]: an [`Outcome`] or an [`Answer`].
pub trait Classify {
    /// Returns the class of the result.
    fn class(&self) -> Class;

    /// Returns the label for metrics and spans: `ack`, `retry`, `OK`, `NOT_FOUND`.
    fn label(&self) -> &'static str;

    /// Returns the wait before another attempt that the result itself requests.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Returns the result of an operation that was waiting in a layer when its service began to drain.
    fn drained() -> Result<Self, Error>
    where
        Self: Sized;
}

impl Classify for Outcome {
    fn class(&self) -> Class {
        match self {
            Self::Ack | Self::Release => Class::Success,
            Self::Reject { .. } => Class::Refused,
            Self::Retry { .. } => Class::Failed,
        }
    }

    fn label(&self) -> &'static str {
        self.as_str()
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Retry { after, .. } => *after,
            _ => None,
        }
    }

    fn drained() -> Result<Self, Error> {
        Ok(Self::Release)
    }
}

impl Classify for Answer {
    fn class(&self) -> Class {
        match self.code() {
            crate::status::Code::Ok => Class::Success,
            code if code.is_server_fault() => Class::Failed,
            _ => Class::Refused,
        }
    }

    fn label(&self) -> &'static str {
        self.code().as_str()
    }

    fn drained() -> Result<Self, Error> {
        Err(Error::new(ErrorKind::Closed, "the client is closing"))
    }
}

/// The class of a result, which may be a layer's error.
pub(super) fn classify<R: Classify>(result: &Result<R, Error>) -> Class {
    match result {
        Ok(response) => response.class(),
        Err(error) if error.is_temporary() || error.kind() == ErrorKind::Internal => Class::Failed,
        Err(_) => Class::Refused,
    }
}

pub(super) fn label<R: Classify>(result: &Result<R, Error>) -> &'static str {
    match result {
        Ok(response) => response.label(),
        Err(error) => error.kind().as_str(),
    }
}
