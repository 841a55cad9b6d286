//! Metrics: counts and times messages and requests by outcome, and reports the number in flight.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use metrics::{Counter, Gauge, Histogram, Label};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::error::of_layer;
use super::operation::{Classify, Kind, Operation, label};
use super::registry::Registry;
use crate::telemetry;
use event_transport::error::{Error, Result};

/// Counts and times every call through the `metrics` facade, under the names in [`telemetry`].
///
/// The instruments of each handler and subject are created once and kept: a message costs a few atomic additions and
/// no allocation. Install a recorder before the first message, because instruments that were created without a
/// recorder record nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetricsLayer;

impl<S> Layer<S> for MetricsLayer {
    type Service = MetricsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        telemetry::describe();
        MetricsService { inner, instruments: Registry::default() }
    }
}

/// A service wrapped by a [`MetricsLayer`].
#[derive(Clone)]
pub struct MetricsService<S> {
    inner: S,
    instruments: Registry<Instruments>,
}

/// The number of outcome labels that are kept apart: outcomes, status codes and error kinds, at most 35 today.
const ENDINGS: usize = 48;

/// The instruments of one handler or subject.
struct Instruments {
    kind: Kind,
    labels: Vec<Label>,
    in_flight: Gauge,
    age: Histogram,
    /// Filled from the front, one entry for each new outcome label; read without a lock.
    endings: [OnceLock<Ending>; ENDINGS],
}

struct Ending {
    label: &'static str,
    count: Counter,
    duration: Histogram,
}

impl Instruments {
    fn new<T: Operation>(operation: &T) -> Self {
        let kind = operation.kind();
        let mut labels = vec![
            Label::from_static_parts(telemetry::SYSTEM, operation.system()),
            Label::from_static_parts(telemetry::OPERATION, kind.as_str()),
            Label::new(telemetry::DESTINATION, operation.message().subject.as_str().to_owned()),
        ];
        if kind == Kind::Process {
            labels.push(Label::new(telemetry::GROUP, operation.name().to_owned()));
        }
        Self {
            kind,
            in_flight: metrics::gauge!(telemetry::IN_FLIGHT, labels.clone()),
            age: metrics::histogram!(telemetry::AGE, labels.clone()),
            endings: [const { OnceLock::new() }; ENDINGS],
            labels,
        }
    }

    fn ending(&self, label: &'static str) -> &Ending {
        let make = || {
            let mut labels = self.labels.clone();
            labels.push(Label::from_static_parts(telemetry::OUTCOME, label));
            let (count, duration) = match self.kind {
                Kind::Process => (telemetry::PROCESSED, telemetry::PROCESS_DURATION),
                Kind::Serve => (telemetry::SERVED, telemetry::SERVE_DURATION),
                Kind::Request => (telemetry::REQUESTED, telemetry::REQUEST_DURATION),
            };
            Ending {
                label,
                count: metrics::counter!(count, labels.clone()),
                duration: metrics::histogram!(duration, labels),
            }
        };
        let (last, firsts) = self.endings.split_last().expect("there are some");
        let found = firsts.iter().map(|slot| slot.get_or_init(make)).find(|ending| ending.label == label);
        found.unwrap_or_else(|| last.get_or_init(make))
    }
}

impl<S, T> Service<T> for MetricsService<S>
where
    T: Operation,
    S: Service<T>,
    S::Response: Classify,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx).map_err(of_layer)
    }

    fn call(&mut self, operation: T) -> Self::Future {
        // A layer belongs to one handler, so the subject distinguishes the messages of a wildcard subscription.
        let subject = operation.message().subject.as_str();
        let instruments = self.instruments.get(subject, || Instruments::new(&operation)).clone();
        if let Some(age) = operation.age() {
            instruments.age.record(age.as_secs_f64());
        }
        let under_way = UnderWay::new(instruments);
        MetricsFuture { call: self.inner.call(operation), under_way }
    }
}

/// Counts a call as in flight until it is dropped, also when the call is cancelled.
struct UnderWay {
    instruments: Arc<Instruments>,
    started: Instant,
}

impl UnderWay {
    fn new(instruments: Arc<Instruments>) -> Self {
        instruments.in_flight.increment(1.0);
        Self { instruments, started: Instant::now() }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.instruments.in_flight.decrement(1.0);
    }
}

pin_project! {
    /// A call that is counted and timed.
    pub struct MetricsFuture<F> {
        #[pin]
        call: F,
        under_way: UnderWay,
    }
}

impl<F, R, E> Future for MetricsFuture<F>
where
    F: Future<Output = Result<R, E>>,
    R: Classify,
    E: Into<BoxError>,
{
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.call.poll(cx)).map_err(of_layer);
        let ending = this.under_way.instruments.ending(label(&result));
        ending.count.increment(1);
        ending.duration.record(this.under_way.started.elapsed().as_secs_f64());
        Poll::Ready(result)
    }
}

impl<S> fmt::Debug for MetricsService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsService").finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for MetricsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsFuture").finish_non_exhaustive()
    }
}
