//! Tests of the path of a log line from `tracing` to the bus.

use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;

use super::{LogBatch, LogRecord, Severity, shipping};
use crate::Event as _;
use crate::bus::Bus;
use crate::context::{Context, TraceParent};
use crate::envelope::Envelope;
use crate::message::MessageId;
use crate::subscription::Subscription;
use crate::transport::Subscribe;

const BOUND: Duration = Duration::from_secs(10);

async fn bus() -> (Bus, Subscription) {
    // A unique name, because all nameless buses of a process are one bus.
    let bus = Bus::connect(&format!("memory:{}", uuid::Uuid::now_v7().simple())).await.expect("a bus");
    let pattern = LogBatch::PATTERN.parse().expect("a pattern");
    let subscription = bus.subscribe(Subscribe::broadcast(vec![pattern])).await.expect("a subscription");
    (bus, subscription)
}

async fn next(subscription: &Subscription) -> LogBatch {
    let delivery = tokio::time::timeout(BOUND, subscription.next()).await.expect("in time").expect("open");
    let envelope = Envelope::read(delivery.message()).expect("an envelope");
    LogBatch::decode(LogBatch::VERSION, &envelope).expect("a batch")
}

async fn take(subscription: &Subscription, count: usize) -> Vec<LogRecord> {
    let mut records = Vec::new();
    while records.len() < count {
        records.extend(next(subscription).await.into_records());
    }
    records
}

#[tokio::test]
async fn what_is_logged_before_and_after_the_start_arrives_in_order() {
    let (bus, subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let subscriber = tracing_subscriber::registry().with(layer);
    let _guard = tracing::subscriber::set_default(subscriber);
    tracing::info!("before there is a bus");
    let shipping = shipper.start(bus);
    let span = tracing::info_span!("payment", order = 17, request_id = "r-1", late = tracing::field::Empty);
    span.record("late", "recorded");
    span.in_scope(|| tracing::warn!(cents = 2.5, ok = false, odd = f64::NAN, "card {}", "refused"));
    let error = std::io::Error::other("disk");
    tracing::error!(error = &error as &dyn std::error::Error, trace_id = "t-1", "gone");
    let records = take(&subscription, 3).await;
    let messages: Vec<_> = records.iter().map(|record| record.message.as_str()).collect();
    assert_eq!(messages, ["before there is a bus", "card refused", "gone"]);
    assert!(records.iter().all(|record| record.service == "billing"));
    let warning = &records[1];
    assert_eq!((warning.severity, warning.level.as_str()), (Severity::WARN, "WARN"));
    assert_eq!(warning.request_id.as_deref(), Some("r-1"));
    let expected = serde_json::json!({
        "order": 17, "late": "recorded", "cents": 2.5, "ok": false, "odd": "NaN", "target": module_path!(),
    });
    assert_eq!(serde_json::Value::Object(warning.attributes.clone().into_map()), expected);
    assert_eq!(records[2].trace_id.as_deref(), Some("t-1"));
    assert_eq!(records[2].attributes["error"], "disk");
    assert!(shipping.close(BOUND).await);
}

#[tokio::test]
async fn ids_are_those_of_the_event_being_handled() {
    let (bus, subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let context = Context {
        correlation: MessageId::now(),
        causation: MessageId::now(),
        trace: TraceParent::root(),
        tracestate: None,
    };
    context.clone().scope(async { tracing::info!("handled") }).await;
    let shipping = shipper.start(bus);
    let record = take(&subscription, 1).await.remove(0);
    assert_eq!(record.correlation_id, Some(context.correlation.to_string()));
    assert_eq!(record.trace_id, Some(format!("{:032x}", context.trace.trace_id)));
    assert_eq!(record.span_id, Some(format!("{:016x}", context.trace.span_id)));
    assert!(shipping.close(BOUND).await);
}

#[tokio::test]
async fn closing_ships_what_waits_without_lingering() {
    let (bus, subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let shipping = shipper.start(bus);
    for n in 0..2000 {
        tracing::info!(n, "many");
    }
    assert!(shipping.close(BOUND).await);
    let records = take(&subscription, 2000).await;
    assert!(records.iter().enumerate().all(|(n, record)| record.attributes["n"] == n));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_counted_where_it_was_cut_and_the_grave_survive() {
    let (bus, subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    for n in 0..20_000 {
        tracing::debug!(target: "billing", n, "noise");
    }
    for n in 0..10 {
        tracing::error!(n, "grave");
    }
    drop(guard);
    let shipping = shipper.start(bus);
    let (mut grave, mut noise, mut dropped) = (0, 0, 0);
    while grave + noise + dropped < 20_010 {
        let batch = next(&subscription).await;
        assert!(batch.dropped.iter().all(|dropped| dropped.severity == Severity::DEBUG));
        dropped += batch.dropped.iter().map(|dropped| dropped.count).sum::<u64>();
        grave += batch.records.iter().filter(|record| record.severity == Severity::ERROR).count() as u64;
        noise += batch.records.iter().filter(|record| record.severity == Severity::DEBUG).count() as u64;
    }
    assert_eq!(grave, 10);
    assert!(dropped > 10_000 && noise > 0, "{dropped} dropped, {noise} shipped");
    assert!(shipping.close(BOUND).await);
}

#[tokio::test]
async fn its_own_failure_is_not_shipped_and_nothing_hangs() {
    let (bus, _subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let queue = Arc::clone(&layer.queue);
    bus.close().await.expect("closed");
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    tracing::info!("this line is not delivered");
    let shipping = shipper.start(bus);
    let taken = async {
        while !queue.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, taken).await.expect("the shipper tries");
    assert!(
        !shipping.close(Duration::from_millis(500)).await,
        "close reports that not everything was shipped"
    );
    assert!(queue.is_empty(), "the failure was not queued as a record");
}

#[tokio::test]
async fn a_record_that_is_too_large_is_cut_before_it_is_queued() {
    let (bus, subscription) = bus().await;
    let (layer, shipper) = shipping("billing");
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let huge = "é".repeat(1_000_000);
    tracing::info!(%huge, debug = ?huge, text = huge, "{huge}");
    let shipping = shipper.start(bus);
    let record = take(&subscription, 1).await.remove(0);
    assert_eq!(record.message.len(), 64 * 1024);
    assert!(record.weight() < 300 * 1024);
    assert!(shipping.close(BOUND).await);
}
