//! `Confirm`: the future for the confirmation of a publish or a settlement.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// A future that resolves when the transport has completed the operation, such as a publish or a settlement.
///
/// The transport starts the operation before it returns this value: dropping the value discards the result and does
/// not cancel the operation ([`Confirm::boxed`] is the exception). This is one concrete type instead of a boxed future,
/// so that a ready result needs no allocation.
#[must_use = "the outcome is only known when the confirmation is awaited"]
pub struct Confirm<T>(State<T>);

enum State<T> {
    Ready(Option<Result<T>>),
    Waiting(oneshot::Receiver<Result<T>>),
    Boxed(BoxFuture<'static, Result<T>>),
}

/// The sender with which a transport resolves a [`Confirm`]. Dropping it unused resolves the confirmation to
/// [`ErrorKind::Closed`].
///
/// A transport that can resolve many confirmations at once should do so from the newest to the oldest: a publisher of a
/// window awaits the oldest one first, so its task is woken once and then finds all of them resolved.
pub type Answer<T> = oneshot::Sender<Result<T>>;

impl<T> Confirm<T> {
    /// A confirmation that is already resolved to `result`.
    #[inline]
    pub fn ready(result: Result<T>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// A sender and the confirmation that it resolves. The transport keeps the sender.
    #[inline]
    pub fn channel() -> (Answer<T>, Self) {
        let (answer, waiting) = oneshot::channel();
        (answer, Self(State::Waiting(waiting)))
    }

    /// Takes the error of an operation that the transport has refused already.
    #[inline]
    pub fn refusal(&mut self) -> Option<Error> {
        match &mut self.0 {
            State::Ready(result) => result.take_if(|result| result.is_err())?.err(),
            State::Waiting(_) | State::Boxed(_) => None,
        }
    }

    /// Whether the operation makes progress only while the confirmation is awaited.
    #[inline]
    pub fn is_question(&self) -> bool {
        matches!(self.0, State::Boxed(_))
    }

    /// A confirmation that resolves to the output of `future`, for client libraries whose calls are futures. The future
    /// runs only while the confirmation is awaited.
    pub fn boxed(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(State::Boxed(Box::pin(future)))
    }
}

// No field is structurally pinned: the receiver is `Unpin` and the future is boxed.
impl<T> Unpin for Confirm<T> {}

impl<T> Future for Confirm<T> {
    type Output = Result<T>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.take().expect("polled after completion")),
            State::Waiting(waiting) => Pin::new(waiting).poll(cx).map(|answer| {
                answer.unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::Closed,
                        "the transport closed before it confirmed; the outcome is unknown",
                    ))
                })
            }),
            State::Boxed(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for Confirm<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirm").finish_non_exhaustive()
    }
}
