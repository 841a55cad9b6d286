//! Timeout: bounds the duration of every call.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::error::of_layer;
use super::operation::Operation;
use event_transport::error::{Error, ErrorKind, Result};

/// Drops a call that takes longer than this, including the waits in inner layers.
///
/// An event whose handler exceeds the time is retried later; a handler of requests that exceeds it replies with
/// `DEADLINE_EXCEEDED`. A sent request ends as [`CallError::Deadline`](crate::CallError::Deadline); for a streamed
/// answer the time ends with the first chunk.
#[derive(Clone, Copy, Debug)]
pub struct Timeout(Duration);

impl Timeout {
    /// Creates a timeout of `bound`.
    pub const fn new(bound: Duration) -> Self {
        Self(bound)
    }
}

impl<S> Layer<S> for Timeout {
    type Service = TimeoutService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService { inner, bound: self.0 }
    }
}

/// A service wrapped by a [`Timeout`].
#[derive(Clone, Debug)]
pub struct TimeoutService<S> {
    inner: S,
    bound: Duration,
}

impl<S, T> Service<T> for TimeoutService<S>
where
    T: Operation,
    S: Service<T>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx).map_err(of_layer)
    }

    fn call(&mut self, operation: T) -> Self::Future {
        let kind = operation.kind().as_str();
        let bound = self.bound;
        TimeoutFuture { call: self.inner.call(operation), sleep: tokio::time::sleep(bound), bound, kind }
    }
}

pin_project! {
    /// A call with a [`Timeout`].
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        #[pin]
        call: F,
        #[pin]
        sleep: Sleep,
        bound: Duration,
        kind: &'static str,
    }
}

impl<F, R, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.call.poll(cx) {
            return Poll::Ready(result.map_err(of_layer));
        }
        // Polled after the call, so that a call that never waits never registers a timer.
        this.sleep.poll(cx).map(|()| {
            let text =
                format!("the call took longer than the {:?} that its timeout layer allows", this.bound);
            Err(Error::new(ErrorKind::Timeout, text).during(this.kind))
        })
    }
}
