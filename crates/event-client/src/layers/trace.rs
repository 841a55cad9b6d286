//! Tracing: puts a span around every message that is handled and every request that is sent.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Span;
use tracing::field::{Empty, display};

use super::error::of_layer;
use super::operation::{Classify, Kind, Operation, label};
use event_transport::error::{Error, Result};

/// Puts a span of level INFO around every call. The span has OpenTelemetry's messaging fields, `trace_id` and
/// `span_id` of the message's W3C trace context, and `outcome` when the call has ended. Everything that the call logs
/// belongs to the span.
///
/// A span that no subscriber records costs one comparison.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TraceService { inner }
    }
}

/// A service wrapped by a [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct TraceService<S> {
    inner: S,
}

impl<S, T> Service<T> for TraceService<S>
where
    T: Operation,
    S: Service<T>,
    S::Response: Classify,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx).map_err(of_layer)
    }

    fn call(&mut self, operation: T) -> Self::Future {
        let span = span(&operation);
        let call = span.in_scope(|| self.inner.call(operation));
        TraceFuture { call, span }
    }
}

/// The names of the fields are those of [`telemetry`](crate::telemetry); the macro requires them as literals.
fn span<T: Operation>(operation: &T) -> Span {
    let (message, context, kind) = (operation.message(), operation.context(), operation.kind());
    let span = tracing::info_span!(
        "message",
        otel.kind = match kind {
            Kind::Process => "consumer",
            Kind::Serve => "server",
            Kind::Request => "client",
        },
        otel.name = Empty,
        messaging.system = operation.system(),
        messaging.operation.r#type = kind.as_str(),
        messaging.destination.name = message.subject.as_str(),
        messaging.consumer.group.name = Empty,
        messaging.message.id = Empty,
        messaging.message.conversation_id = Empty,
        trace_id = Empty,
        span_id = Empty,
        attempt = Empty,
        outcome = Empty,
    );
    // Formatted only when a subscriber records the span.
    if !span.is_disabled() {
        span.record("otel.name", display(format_args!("{} {}", kind.as_str(), message.subject)));
        span.record("messaging.message.id", display(&message.id));
        span.record("messaging.message.conversation_id", display(&context.correlation));
        span.record("trace_id", display(format_args!("{:032x}", context.trace.trace_id)));
        span.record("span_id", display(format_args!("{:016x}", context.trace.span_id)));
        if kind == Kind::Process {
            span.record("messaging.consumer.group.name", operation.name());
            span.record("attempt", operation.attempt());
        }
    }
    span
}

pin_project! {
    /// A call inside its span.
    pub struct TraceFuture<F> {
        #[pin]
        call: F,
        span: Span,
    }
}

impl<F, R, E> Future for TraceFuture<F>
where
    F: Future<Output = Result<R, E>>,
    R: Classify,
    E: Into<BoxError>,
{
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _inside = this.span.enter();
        let result = ready!(this.call.poll(cx)).map_err(of_layer);
        this.span.record("outcome", label(&result));
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for TraceFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceFuture").field("span", &self.span).finish_non_exhaustive()
    }
}
