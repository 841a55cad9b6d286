//! Admission control, the common part of rate limits, concurrency limits and circuit breakers: a call acquires a
//! permit before it starts and returns the permit after it has ended.
//!
//! A call waits for its permit inside the call itself, not in `poll_ready`: a worker that is ready may wait hours for
//! its next message and must not hold a permit that another handler needs. While a message waits for a permit, it
//! stays leased and its lease is renewed; the handler's concurrency bounds the number of messages that wait.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use super::error::of_layer;
use super::operation::{Classify, Operation};
use event_transport::error::{Error, ErrorKind, Result};

/// Decides whether and when a call may start.
pub trait Admission: Clone + Send + 'static {
    /// The permit, held while the call runs. It is dropped without [`Permit::leave`] when the call is cancelled.
    type Permit: Permit;

    /// Requests a permit for `operation`.
    fn enter<T: Operation>(&mut self, operation: &T) -> Decision<Self::Permit>;
}

/// The right to run one call.
pub trait Permit: Send + 'static {
    /// Returns the permit after the call has ended with this result.
    fn leave<R: Classify>(self, _result: &Result<R>)
    where
        Self: Sized,
    {
    }
}

/// The result of [`Admission::enter`].
pub enum Decision<P> {
    /// The call may start.
    Admit(P),
    /// The call may start when this future resolves.
    Wait(BoxFuture<'static, Result<P>>),
    /// The call is not made and ends with this error.
    Refused(Error),
}

/// Waits for a permit, at most until the operation's deadline passes or its service drains.
pub(super) fn wait_for<T: Operation, P: Send + 'static>(
    operation: &T,
    what: &'static str,
    wait: impl Future<Output = P> + Send + 'static,
) -> BoxFuture<'static, Result<P>> {
    let (draining, deadline) = (operation.draining(), operation.deadline());
    let drained = async move {
        match draining {
            Some(draining) => draining.cancelled_owned().await,
            None => std::future::pending().await,
        }
    };
    let late = async move {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    Box::pin(async move {
        tokio::select! {
            biased;
            permit = wait => Ok(permit),
            () = drained => Err(Error::new(ErrorKind::Closed, "the service is draining")),
            () = late => Err(Error::new(ErrorKind::Full, what)),
        }
    })
}

/// A service whose calls need a permit of `gate`.
#[derive(Clone)]
pub struct AdmissionService<G, S> {
    gate: G,
    inner: S,
}

impl<G, S> AdmissionService<G, S> {
    pub(super) fn new(gate: G, inner: S) -> Self {
        Self { gate, inner }
    }
}

impl<G, S, T> Service<T> for AdmissionService<G, S>
where
    G: Admission,
    T: Operation,
    S: Service<T> + Clone,
    S::Response: Classify,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = AdmissionFuture<G::Permit, S, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx).map_err(of_layer)
    }

    fn call(&mut self, operation: T) -> Self::Future {
        let state = match self.gate.enter(&operation) {
            Decision::Admit(permit) => {
                State::Running { permit: Some(permit), call: self.inner.call(operation) }
            }
            Decision::Refused(error) => State::Refused { error: Some(error) },
            Decision::Wait(wait) => {
                // `poll_ready` prepared this instance, so it must make this call; its clone makes the next one.
                let next = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, next);
                State::Waiting { wait, call: Some((inner, operation)) }
            }
        };
        AdmissionFuture { state, _types: PhantomData }
    }
}

pin_project! {
    /// A call that waits for its permit or runs with it.
    pub struct AdmissionFuture<P, S: Service<T>, T> {
        #[pin]
        state: State<P, S, T, S::Future>,
        _types: PhantomData<fn(T)>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<P, S, T, F> {
        Waiting { wait: BoxFuture<'static, Result<P>>, call: Option<(S, T)> },
        Running { permit: Option<P>, #[pin] call: F },
        Refused { error: Option<Error> },
    }
}

impl<P, S, T> Future for AdmissionFuture<P, S, T>
where
    P: Permit,
    S: Service<T>,
    S::Response: Classify,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
                StateProjection::Waiting { wait, call } => match ready!(wait.as_mut().poll(cx)) {
                    Ok(permit) => {
                        let (mut inner, operation) = call.take().expect("waits once");
                        let call = inner.call(operation);
                        state.set(State::Running { permit: Some(permit), call });
                    }
                    Err(error) if error.kind() == ErrorKind::Closed => {
                        return Poll::Ready(S::Response::drained());
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
                StateProjection::Running { permit, call } => {
                    let result = ready!(call.poll(cx)).map_err(of_layer);
                    if let Some(permit) = permit.take() {
                        permit.leave(&result);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl<G: fmt::Debug, S> fmt::Debug for AdmissionService<G, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl<P, S: Service<T>, T> fmt::Debug for AdmissionFuture<P, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passing").finish_non_exhaustive()
    }
}

impl<P> fmt::Debug for Decision<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admit(_) => "Admit",
            Self::Wait(_) => "Wait",
            Self::Refused(_) => "Refused",
        })
    }
}
