//! Tests the trace and metrics layers through a metrics recorder and a tracing subscriber.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::context::{Context, TraceParent};
use event_client::delivery::{Reason, Rejection};
use event_client::layers::{MetricsLayer, TraceLayer};
use event_client::service::{Attempt, Handler, Msg, Outcome, Req, RetryPolicy, Service};
use event_client::status::Status;
use event_client::subject::Group;
use event_client::telemetry;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context as Scope, SubscriberExt};

use crate::broker::group;
use crate::events::{OrderPlaced, placed};
use crate::requests::{GetQuote, Quote, memory, sku};

/// Every value by metric and labels.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<BTreeMap<String, f64>>>);

struct Cell(Recorded, String);

impl Cell {
    fn add(&self, value: f64) {
        *self.0.0.lock().unwrap().entry(self.1.clone()).or_default() += value;
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, value: f64) {
        self.add(-value);
    }
    fn set(&self, value: f64) {
        self.0.0.lock().unwrap().insert(self.1.clone(), value);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.add(1.0);
    }
}

impl Recorded {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let mut labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        Arc::new(Cell(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }
}

impl metrics::Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

async fn quote(Req(asked): Req<GetQuote>) -> Result<Quote, Status> {
    if asked.sku == "tea" { Ok(Quote { cents: 1 }) } else { Err(Status::not_found("no")) }
}

#[test]
fn every_call_is_counted_and_timed_by_how_it_ended() {
    let recorded = Recorded::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorded, || {
        runtime.block_on(async {
            let bus = memory();
            let service = Service::new("pricing").bus(bus.clone()).reply(quote).layer(MetricsLayer);
            let _service = service.start().await.unwrap();
            let client = bus.client().layer(MetricsLayer);
            client.request(sku("tea")).await.unwrap();
            client.request(sku("tea")).await.unwrap();
            client.request(sku("gold")).await.unwrap_err();
        });
    });
    let values = recorded.0.lock().unwrap();
    let value = |name: &str, kind: &str, outcome: &str| {
        let outcome = if outcome.is_empty() { String::new() } else { format!(",outcome={outcome}") };
        let labels = format!(
            "{name}{{messaging.destination.name=pricing.get-quote.v1,messaging.operation.type={kind},messaging.system=memory{outcome}}}"
        );
        *values.get(&labels).unwrap_or_else(|| panic!("no {labels} in {:#?}", values.keys()))
    };
    assert_eq!(value(telemetry::SERVED, "serve", "ack"), 2.0);
    assert_eq!(value(telemetry::SERVED, "serve", "reject"), 1.0);
    assert_eq!(value(telemetry::REQUESTED, "request", "OK"), 2.0);
    assert_eq!(value(telemetry::REQUESTED, "request", "NOT_FOUND"), 1.0);
    assert_eq!(value(telemetry::REQUEST_DURATION, "request", "NOT_FOUND"), 1.0);
    assert_eq!(value(telemetry::IN_FLIGHT, "serve", ""), 0.0);
}

#[test]
fn every_event_is_counted_and_timed_by_how_its_handling_ended() {
    async fn charge(attempt: Attempt, Msg(order): Msg<OrderPlaced>) -> Outcome {
        match (order.order_id, attempt.number()) {
            (1, _) => Outcome::Ack,
            (2, 1) => Outcome::retry("busy"),
            (2, _) => Outcome::Ack,
            _ => Outcome::reject("no card"),
        }
    }
    let recorded = Recorded::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorded, || {
        runtime.block_on(async {
            let bus = memory();
            let policy = RetryPolicy::attempts(3).backoff(Duration::ZERO, Duration::ZERO);
            let service =
                Service::new("billing").bus(bus.clone()).on(charge.retry(policy)).layer(MetricsLayer);
            let service = service.start().await.unwrap();
            bus.publish_all((1..=3).map(placed)).await.unwrap();
            let ended = || service.counts()["billing.orders.placed"];
            while ended().acked + ended().rejected < 3 {
                tokio::task::yield_now().await;
            }
            service.drain().await.unwrap();
        });
    });
    let values = recorded.0.lock().unwrap();
    let value = |name: &str, outcome: &str| {
        let outcome = if outcome.is_empty() { String::new() } else { format!(",outcome={outcome}") };
        let labels = format!(
            "{name}{{messaging.consumer.group.name=billing.orders.placed,messaging.destination.name=orders.placed.v1,\
             messaging.operation.type=process,messaging.system=memory{outcome}}}"
        );
        *values.get(&labels).unwrap_or_else(|| panic!("no {labels} in {:#?}", values.keys()))
    };
    for (outcome, times) in [("ack", 2.0), ("retry", 1.0), ("reject", 1.0)] {
        assert_eq!(value(telemetry::PROCESSED, outcome), times, "{outcome}");
        assert_eq!(value(telemetry::PROCESS_DURATION, outcome), times, "{outcome}");
    }
    assert_eq!(value(telemetry::AGE, ""), 4.0, "one for each attempt");
    assert_eq!(value(telemetry::IN_FLIGHT, ""), 0.0);
}

/// Of one group, one message waits, one is taken, one waits for a retry, one is dead: each gauge has its own
/// value. The gauges of a deleted group fall to 0.
#[test]
fn the_lag_of_a_group_is_exported() {
    let recorded = Recorded::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gauge = |name: &str| {
        let values = recorded.0.lock().unwrap();
        values.get(&format!("{name}{{messaging.consumer.group.name=g}}")).copied()
    };
    metrics::with_local_recorder(&recorded, || {
        runtime.block_on(async {
            let bus = memory();
            let mut spec = group("g", "orders.>");
            spec.max_in_flight = 2;
            let subscription = bus.transport().subscribe(spec).await.unwrap();
            bus.publish_all((1..=4).map(placed)).await.unwrap();
            let next = async || subscription.next().await.expect("a delivery");
            next().await.retry(Duration::from_secs(3600), "busy").await.unwrap();
            next().await.reject(Rejection::new(Reason::Permanent, "no")).await.unwrap();
            let taken = next().await;
            let lag = bus.export_lag(Duration::ZERO);
            let wanted = [
                (telemetry::GROUP_RETRYING, 1.0),
                (telemetry::GROUP_DEAD, 1.0),
                (telemetry::GROUP_MEMBERS, 1.0),
            ];
            while wanted.iter().any(|(name, value)| gauge(name) != Some(*value)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (waiting, in_flight) = (gauge(telemetry::GROUP_WAITING), gauge(telemetry::GROUP_IN_FLIGHT));
            // The retry counts as waiting. The fourth message uses free credit, too: it is delivered and not
            // handled.
            assert_eq!((waiting, in_flight), (Some(1.0), Some(2.0)));
            while gauge(telemetry::GROUP_OLDEST) <= Some(0.0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop((taken, subscription));
            bus.admin().delete_group(Group::new("g").unwrap()).await.unwrap();
            while gauge(telemetry::GROUP_DEAD) != Some(0.0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(lag);
        });
    });
}

/// The fields of every span, and of the lines that are logged inside it.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Scope<'_, S>) {
        if attributes.metadata().name() == "message" {
            let mut spans = self.0.lock().unwrap();
            attributes.record(&mut Fields(spans.entry(id.into_u64()).or_default()));
        }
    }
    fn on_record(&self, id: &Id, values: &Record<'_>, _: Scope<'_, S>) {
        if let Some(fields) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Fields(fields));
        }
    }
}

#[tokio::test]
async fn a_span_names_the_message_its_flow_and_its_end() {
    async fn charge(Msg(_): Msg<OrderPlaced>) -> Result<(), &'static str> {
        Ok(())
    }
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    let flow = Context {
        correlation: "the-flow".into(),
        causation: "the-cause".into(),
        trace: TraceParent::root(),
        tracestate: None,
    };
    {
        // The test's runtime has one thread, so the subscriber also applies to the service's workers.
        let _listening = tracing::subscriber::set_default(subscriber);
        let service = Service::new("billing").on(charge).layer(TraceLayer);
        let bus = memory();
        let running = service.bus(bus.clone()).start().await.unwrap();
        bus.publish(placed(1)).id("the-order").context(flow.clone()).await.unwrap();
        while running.counts()["billing.orders.placed"].acked == 0 {
            tokio::task::yield_now().await;
        }
        running.drain().await.unwrap();
    }
    let spans = spans.0.lock().unwrap();
    let fields = spans.values().next().expect("a span");
    let field = |name: &str| fields.get(name).map(String::as_str);
    for (name, value) in [
        ("otel.name", "process orders.placed.v1"),
        ("otel.kind", "consumer"),
        (telemetry::SYSTEM, "memory"),
        (telemetry::OPERATION, "process"),
        (telemetry::DESTINATION, "orders.placed.v1"),
        (telemetry::GROUP, "billing.orders.placed"),
        (telemetry::MESSAGE_ID, "the-order"),
        (telemetry::CONVERSATION_ID, "the-flow"),
        (telemetry::TRACE_ID, format!("{:032x}", flow.trace.trace_id).as_str()),
        ("attempt", "1"),
        (telemetry::OUTCOME, "ack"),
    ] {
        assert_eq!(field(name), Some(value), "{name} in {fields:#?}");
    }
    assert_eq!(field(telemetry::SPAN_ID).map(str::len), Some(16));
}
