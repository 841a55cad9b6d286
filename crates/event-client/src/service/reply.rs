//! Request handlers: their payload, and the types that they may return.

use smol_str::SmolStr;

use super::extract::{Dynamic, FromPayload, Msg, Raw};
use super::incoming::Incoming;
use super::outcome::{IntoOutcome, Outcome};
use super::reply_channel::Exchange;
use super::route::{Endpoint, Route};
use crate::request::{CallError, ReplyError, Request, Shape};
use crate::status::{Code, Status};
use crate::transport::Frame;
use event_transport::error::{Error, ErrorKind, Result};

/// The last argument of a handler that answers requests: the decoded request.
///
/// Such a handler returns `Result<T::Reply, E>`, or `Result<(), E>` when it sends the answer through a
/// [`ReplySink`](super::ReplySink); `E` is any type that implements [`IntoReplyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Req<T>(pub T);

impl<T: Request> FromPayload for Req<T> {
    fn route() -> Result<Route> {
        Ok(Route { name: SmolStr::new_static(T::SUBJECT), filters: Vec::new() })
    }

    fn request() -> Option<Endpoint> {
        Some(Endpoint { subject: T::SUBJECT, idempotent: T::IDEMPOTENT })
    }

    fn from_payload(incoming: &Incoming) -> Result<Self> {
        incoming.envelope.decode().map(Self)
    }
}

/// A handler's arguments that end in a request, as [`Service::reply`](super::Service::reply) requires.
#[diagnostic::on_unimplemented(
    message = "this handler does not answer a request",
    label = "its last argument is not `Req<T>`",
    note = "a request handler is an `async fn(.., Req<T>) -> Result<T::Reply, E>`; handlers of events go to `.on(..)`"
)]
pub trait RequestHandler {}

/// A payload that needs no answer: an event in any form.
pub trait OneWay: FromPayload {}

impl<T: crate::Event> OneWay for Msg<T> {}
impl OneWay for Dynamic {}
impl OneWay for Raw {}

/// The return type of a handler with payload `P`.
#[diagnostic::on_unimplemented(
    message = "a handler of `{P}` cannot return `{Self}`",
    label = "not a result of handling `{P}`",
    note = "a handler of an event returns `()`, `Outcome` or `Result<(), E>`; \
            a handler of `Req<T>` returns `Result<T::Reply, E>`, or `Result<(), E>` when `T` is answered in chunks"
)]
pub trait AnswerTo<P> {
    /// Converts the result into an outcome; the answer to a request is stored in `asked`.
    #[doc(hidden)]
    fn settle(self, asked: Option<&Exchange>) -> Outcome;
}

impl<P: OneWay, O: IntoOutcome> AnswerTo<P> for O {
    fn settle(self, _: Option<&Exchange>) -> Outcome {
        self.into_outcome()
    }
}

impl<T, R, E> AnswerTo<Req<T>> for Result<R, E>
where
    T: Request,
    T::Shape: Shape<Returns<T::Reply> = R>,
    E: IntoReplyError<T::Error>,
{
    fn settle(self, asked: Option<&Exchange>) -> Outcome {
        let Some(exchange) = asked else {
            return Outcome::reject("a request handler received a message that is not a request");
        };
        let fault = match self {
            Ok(returned) => {
                let last = <T::Shape as Shape>::last::<T::Reply>(returned);
                match last.map_or_else(|| Ok(Frame::end()), |reply| exchange.value(&reply, true)) {
                    Ok(frame) => {
                        exchange.keep(frame);
                        return Outcome::Ack;
                    }
                    Err(error) => ReplyFailure::Status((&error).into()),
                }
            }
            Err(error) => error.into_reply_error(),
        };
        let (frame, code, text) = match &fault {
            ReplyFailure::Error(error) => {
                (exchange.error(error), error.code(), smol_str::format_smolstr!("{error}"))
            }
            ReplyFailure::Status(status) => (exchange.status(status), status.code, status.message.clone()),
        };
        exchange.keep(frame);
        if code.is_server_fault() {
            Outcome::Retry { after: None, error: text }
        } else {
            Outcome::Reject { reason: crate::delivery::Reason::Permanent, error: text }
        }
    }
}

/// A failure as the caller receives it: the request's own error, or a status.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyFailure<E> {
    /// The caller receives it as [`CallError::Remote`].
    Error(E),
    /// Reaches the caller as [`CallError::Status`].
    Status(Status),
}

/// An error that a handler may return for a request with errors of type `E`: that type itself, a [`Status`], a
/// [`ReplyFailure`] of either, this crate's [`Error`], another call's [`CallError`], or a boxed error (`INTERNAL`).
#[diagnostic::on_unimplemented(
    message = "a handler of this request cannot fail with `{Self}`",
    label = "neither `{E}` nor convertible into an answer",
    note = "return the request's error type `{E}` or a `Status`, or implement `IntoReplyError<{E}>` for `{Self}`"
)]
pub trait IntoReplyError<E> {
    /// Converts this error into the failure that the caller receives.
    fn into_reply_error(self) -> ReplyFailure<E>;
}

impl<E: ReplyError> IntoReplyError<E> for E {
    fn into_reply_error(self) -> ReplyFailure<E> {
        ReplyFailure::Error(self)
    }
}

impl<E: ReplyError> IntoReplyError<E> for ReplyFailure<E> {
    fn into_reply_error(self) -> Self {
        self
    }
}

impl<E: ReplyError> IntoReplyError<E> for Status {
    fn into_reply_error(self) -> ReplyFailure<E> {
        ReplyFailure::Status(self)
    }
}

impl<E: ReplyError> IntoReplyError<E> for Error {
    fn into_reply_error(self) -> ReplyFailure<E> {
        // A handler's own failure to decode or to find something is not the caller's fault.
        let code = match self.kind() {
            kind @ (ErrorKind::Timeout
            | ErrorKind::Unavailable
            | ErrorKind::Full
            | ErrorKind::NoResponder) => kind.into(),
            _ => Code::Internal,
        };
        ReplyFailure::Status(Status::new(code, smol_str::format_smolstr!("{self}")))
    }
}

impl<E: ReplyError, X: ReplyError> IntoReplyError<E> for CallError<X> {
    fn into_reply_error(self) -> ReplyFailure<E> {
        ReplyFailure::Status(self.to_status())
    }
}

impl<E: ReplyError> IntoReplyError<E> for Box<dyn std::error::Error + Send + Sync> {
    fn into_reply_error(self) -> ReplyFailure<E> {
        ReplyFailure::Status(Status::internal(smol_str::format_smolstr!("{self}")))
    }
}
