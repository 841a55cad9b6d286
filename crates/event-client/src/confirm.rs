//! A confirmation on its way: the answer of a publish or a settlement.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// Resolves when the transport has done what was asked.
///
/// The request is already on its way when this value exists: dropping it gives up the answer, not the request.
/// One concrete type instead of a boxed future, so that the cheap cases cost no allocation.
#[must_use = "the outcome is only known when the confirmation is awaited"]
pub struct Confirm<T>(State<T>);

enum State<T> {
    Ready(Option<Result<T>>),
    Waiting(oneshot::Receiver<Result<T>>),
    Boxed(BoxFuture<'static, Result<T>>),
}

/// The transport's end of a [`Confirm`]. Dropped unanswered, it answers [`ErrorKind::Closed`].
///
/// Many that are known at once are best answered from the newest to the oldest: who has published a window awaits the
/// oldest, and wakes once to find all of them answered.
pub type Answer<T> = oneshot::Sender<Result<T>>;

impl<T> Confirm<T> {
    /// Already answered.
    pub fn ready(result: Result<T>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// A pair: give the first to whoever answers.
    pub fn channel() -> (Answer<T>, Self) {
        let (answer, waiting) = oneshot::channel();
        (answer, Self(State::Waiting(waiting)))
    }

    /// Whether awaiting it is what asks for the answer.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self.0, State::Boxed(_))
    }

    /// Answered by a future, for clients whose calls are futures themselves. It runs only while awaited.
    pub fn boxed(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(State::Boxed(Box::pin(future)))
    }
}

// Nothing in here is pinned structurally: the receiver is `Unpin` and the future is boxed.
impl<T> Unpin for Confirm<T> {}

impl<T> Future for Confirm<T> {
    type Output = Result<T>;

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
