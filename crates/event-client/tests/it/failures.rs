//! Tests that the log line of any failure names the event, the flow and the trace that it belongs to.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::context::{Context, TraceParent};
use event_client::log::{LogBatch, shipping};
use event_client::message::Message;
use event_client::service::{Batch, BatchHandler, Handler, Msg, Req, RetryPolicy, Service};
use event_client::status::Status;
use event_client::subject::{Pattern, Subject};
use event_client::transport::Subscribe;
use event_client::{Bus, Event, outbox};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context as Scope, SubscriberExt};

use crate::events::{OrderPlaced, placed};
use crate::requests::{GetQuote, Quote, memory, sku};

/// Collects log lines as maps of field and value.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Scope<'_, S>) {
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        self.0.lock().unwrap().push(fields);
    }
}

impl Lines {
    /// Collects the log lines of this thread: with a runtime of one thread these are all lines of the test.
    pub(crate) fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        // With a single subscriber alive, `tracing` caches its interest by the thread that happens to query
        // it, which may be another test's, and then a line is never recorded. Two subscribers that stay alive
        // prevent that.
        static KEPT: std::sync::LazyLock<[tracing::Dispatch; 2]> =
            std::sync::LazyLock::new(|| [(); 2].map(|()| tracing_subscriber::registry().into()));
        std::sync::LazyLock::force(&KEPT);
        let lines = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    /// Waits for exactly `count` lines whose message contains `text`, and returns them.
    pub(crate) async fn with(&self, text: &str, count: usize) -> Vec<BTreeMap<String, String>> {
        loop {
            let found: Vec<_> = self
                .0
                .lock()
                .unwrap()
                .iter()
                .filter(|line| line.get("message").is_some_and(|said| said.contains(text)))
                .cloned()
                .collect();
            if found.len() >= count {
                assert_eq!(found.len(), count, "{found:#?}");
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn flow() -> Context {
    Context {
        correlation: "the-flow".into(),
        causation: "the-cause".into(),
        trace: TraceParent::root(),
        tracestate: None,
    }
}

/// Checks that the line names this event of this flow.
#[track_caller]
fn belongs(line: &BTreeMap<String, String>, event: &str, flow: &Context) {
    let field = |name: &str| line.get(name).map(String::as_str);
    assert_eq!(field("event.id"), Some(event), "{line:#?}");
    assert_eq!(field("correlation_id"), Some("the-flow"), "{line:#?}");
    assert_eq!(field("trace_id"), Some(format!("{:032x}", flow.trace.trace_id).as_str()), "{line:#?}");
    assert_eq!(field("span_id").map(str::len), Some(16), "{line:#?}");
}

/// A policy with two attempts and no delay.
fn twice() -> RetryPolicy {
    RetryPolicy::attempts(2).backoff(Duration::ZERO, Duration::ZERO)
}

const AGAIN: &str = "handling failed, will be tried again";
const DEAD: &str = "now a dead letter";

#[tokio::test]
async fn a_handler_that_fails_is_logged_with_the_flow_of_its_event() {
    async fn charge(Msg(_): Msg<OrderPlaced>) -> Result<(), &'static str> {
        Err("card declined")
    }
    let (lines, _listening) = Lines::listen();
    let (bus, flow) = (memory(), flow());
    let service = Service::new("billing").bus(bus.clone()).on(charge.retry(twice()));
    let _service = service.start().await.unwrap();
    bus.publish(placed(1)).id("the-order").context(flow.clone()).await.unwrap();
    belongs(&lines.with(DEAD, 1).await[0], "the-order", &flow);
    belongs(&lines.with(AGAIN, 1).await[0], "the-order", &flow);
}

#[tokio::test]
async fn a_handler_that_panics_is_logged_with_the_flow_of_its_event() {
    async fn charge(Msg(_): Msg<OrderPlaced>) {
        panic!("no card at all");
    }
    let (lines, _listening) = Lines::listen();
    let (bus, flow) = (memory(), flow());
    let service = Service::new("billing").bus(bus.clone()).on(charge.retry(twice()));
    let _service = service.start().await.unwrap();
    bus.publish(placed(1)).id("the-order").context(flow.clone()).await.unwrap();
    belongs(&lines.with(DEAD, 1).await[0], "the-order", &flow);
}

#[tokio::test]
async fn each_item_of_a_batch_is_logged_with_its_own_flow() {
    async fn store(_batch: Batch<OrderPlaced>) -> Result<(), &'static str> {
        Err("disk full")
    }
    let (lines, _listening) = Lines::listen();
    let (bus, flow) = (memory(), flow());
    let handler = store.batch(2, Duration::from_secs(60)).retry(RetryPolicy::never());
    let _service = Service::new("store").bus(bus.clone()).on(handler).start().await.unwrap();
    bus.publish(placed(1)).id("first").context(flow.clone()).await.unwrap();
    let other = Context { trace: TraceParent::root(), ..flow.clone() };
    bus.publish(placed(2)).id("second").context(other.clone()).await.unwrap();
    let said = lines.with(DEAD, 2).await;
    let of = |id: &str| said.iter().find(|line| line["event.id"] == id).expect("a line of its own");
    belongs(of("first"), "first", &flow);
    belongs(of("second"), "second", &other);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_logged_with_what_is_left_of_its_envelope() {
    async fn charge(Msg(_): Msg<OrderPlaced>) {}
    let (lines, _listening) = Lines::listen();
    let (bus, flow) = (memory(), flow());
    let _service = Service::new("billing").bus(bus.clone()).on(charge).start().await.unwrap();
    let attributes = |data: serde_json::Value| {
        json!({
            "specversion": "1.0", "id": "the-order", "source": "/shop", "type": OrderPlaced::SUBJECT,
            "correlationid": "the-flow", "traceparent": flow.trace.to_string(), "data": data,
        })
    };
    // Data that does not match the type, and an envelope that lacks an attribute.
    let mut broken = attributes(json!({ "order_id": 1, "cents": 1 }));
    broken.as_object_mut().unwrap().remove("source");
    for (count, body) in [attributes(json!({ "order_id": "one" })), broken].into_iter().enumerate() {
        let subject = Subject::new(OrderPlaced::SUBJECT).unwrap();
        let message = Message::new(subject, "application/cloudevents+json", body.to_string());
        bus.transport().publish(message).await.unwrap();
        belongs(&lines.with(DEAD, count + 1).await[count], "the-order", &flow);
    }
    // This payload yields no attributes: only the message's own id remains.
    let message =
        Message::new(Subject::new(OrderPlaced::SUBJECT).unwrap(), "application/cloudevents+json", "{");
    let id = message.id.to_string();
    bus.transport().publish(message).await.unwrap();
    let line = lines.with(DEAD, 3).await.remove(2);
    assert_eq!((line["event.id"].as_str(), line.get("correlation_id")), (id.as_str(), None));
}

#[tokio::test]
async fn a_request_that_fails_is_logged_with_the_flow_of_its_caller() {
    async fn quote(Req(asked): Req<GetQuote>) -> Result<Quote, Status> {
        assert_ne!(asked.sku, "panic", "as asked");
        Err(Status::unavailable("no prices yet"))
    }
    let (lines, _listening) = Lines::listen();
    let (bus, flow) = (memory(), flow());
    let _service = Service::new("pricing").bus(bus.clone()).reply(quote).start().await.unwrap();
    for asked in ["tea", "panic"] {
        bus.request(sku(asked)).context(flow.clone()).await.unwrap_err();
    }
    for line in lines.with("a request failed", 2).await.into_iter().chain(lines.with("panicked", 1).await) {
        let id = line["event.id"].clone();
        belongs(&line, &id, &flow);
        assert!(!id.is_empty());
    }
}

#[tokio::test]
async fn an_event_that_the_relay_sets_aside_is_logged_with_its_flow() {
    let (lines, _listening) = Lines::listen();
    let flow = flow();
    let folder = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("service.db"))
        .create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    outbox::create_tables(&pool).await.unwrap();
    let bus = Bus::connect("memory:failures-relay?max_payload=600").await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let large = "x".repeat(1000);
    let staged = outbox::stage(&mut tx, placed(1)).header("note", &large).context(flow.clone());
    let id = staged.await.unwrap().to_string();
    outbox::commit(tx).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let relay = tokio::spawn(outbox::Relay::new(pool, bus).run_until(stop.clone().cancelled_owned()));
    belongs(&lines.with("set aside in the outbox", 1).await[0], &id, &flow);
    stop.cancel();
    relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shipped_failure_carries_the_flow_as_the_record_s_own() {
    async fn charge(Msg(_): Msg<OrderPlaced>) -> Result<(), &'static str> {
        Err("card declined")
    }
    let (layer, shipper) = shipping("billing");
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let (bus, flow) = (memory(), flow());
    let logs = bus.subscribe(Subscribe::broadcast([Pattern::new(LogBatch::PATTERN).unwrap()])).await.unwrap();
    let shipping = shipper.start(bus.clone());
    let policy = RetryPolicy::never();
    let _service = Service::new("billing").bus(bus.clone()).on(charge.retry(policy)).start().await.unwrap();
    bus.publish(placed(1)).id("the-order").context(flow.clone()).await.unwrap();
    let record = loop {
        let delivery = logs.next().await.expect("it is open");
        let envelope = event_client::envelope::Envelope::read(delivery.message()).unwrap();
        let batch = LogBatch::decode(LogBatch::VERSION, &envelope).unwrap();
        let dead = batch.into_records().into_iter().find(|record| record.message.contains(DEAD));
        if let Some(record) = dead {
            break record;
        }
    };
    assert_eq!(record.correlation_id.as_deref(), Some("the-flow"));
    assert_eq!(record.trace_id, Some(format!("{:032x}", flow.trace.trace_id)));
    assert_eq!(record.attributes["event.id"], "the-order");
    assert!(shipping.close(Duration::from_secs(10)).await);
}
