//! Log batches from the bus, sent by the shipper that services use.

use std::time::Duration;

use event_client::Bus;
use event_client::log::{Dropped, LogBatch, LogRecord, Severity, shipping};
use event_client::message::{Message, MessageId};
use event_client::transport::DeadLetterFilter;
use log_aggregator::Aggregator;
use log_aggregator::store::{Order, Query, Stored};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::support::Served;

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs each test on its own bus, over every transport.
macro_rules! on_every_transport {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                let url = format!("memory:{}", uuid::Uuid::now_v7().simple());
                super::$test(event_client::Bus::connect(&url).await.expect("a bus")).await;
            })*
        }

        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                let dir = tempfile::tempdir().expect("a directory");
                let url = format!("sqlite:{}", dir.path().join("bus.db").display());
                super::$test(event_client::Bus::connect(&url).await.expect("a bus")).await;
            })*
        }
    };
}

on_every_transport![
    what_a_service_logs_is_stored_and_queried,
    batches_shipped_before_the_aggregator_first_ran_are_taken_too,
    a_batch_that_comes_twice_is_kept_once,
    what_cannot_be_read_becomes_a_dead_letter_and_stops_nothing,
    what_a_shipper_dropped_is_said,
    a_full_store_leaves_batches_on_the_bus_until_there_is_room,
];

async fn stored(aggregator: &Aggregator) -> Vec<Stored> {
    let query = Query { order: Order::Oldest, limit: 100_000, ..Query::default() };
    aggregator.query(query).await.expect("an answer").records
}

async fn until_there_are(aggregator: &Aggregator, count: u64) {
    let there = async {
        while aggregator.count().await.expect("a count") < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, there).await.unwrap_or_else(|_| panic!("{count} records in time"));
}

fn batch(service: &str, messages: &[&str]) -> LogBatch {
    let records = messages.iter().map(|message| LogRecord::new("", "INFO", *message)).collect();
    LogBatch { service: service.into(), records, dropped: Vec::new() }
}

async fn what_a_service_logs_is_stored_and_queried(bus: Bus) {
    let served = Served::new().await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    let (layer, shipper) = shipping("billing");
    let shipping = shipper.start(bus.clone());
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    for n in 0..1500 {
        tracing::info!(n, trace_id = "t-9", "payment");
    }
    drop(guard);
    assert!(shipping.close(DEADLINE).await);
    until_there_are(&served.aggregator, 1500).await;
    let records = stored(&served.aggregator).await;
    assert!(records.iter().all(|stored| stored.record.service == "billing"));
    let mut numbers: Vec<_> =
        records.iter().map(|stored| stored.record.attributes["n"].as_u64().expect("n")).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..1500), "each once");
    let found = served.at.json("/api/v1/query?trace_id=t-9&limit=2000").await;
    assert_eq!(found["records"].as_array().expect("a list").len(), 1500);
}

async fn batches_shipped_before_the_aggregator_first_ran_are_taken_too(bus: Bus) {
    bus.publish(batch("early", &["before"])).await.expect("published");
    let served = Served::new().await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    bus.publish(batch("early", &["after"])).await.expect("published");
    until_there_are(&served.aggregator, 2).await;
    served.aggregator.drain(DEADLINE).await.expect("drained");
}

async fn a_batch_that_comes_twice_is_kept_once(bus: Bus) {
    let served = Served::new().await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    let id = MessageId::now();
    for _ in 0..3 {
        bus.publish(batch("s", &["a", "b"])).id(id.clone()).await.expect("published");
    }
    bus.publish(batch("s", &["last"])).await.expect("published");
    until_there_are(&served.aggregator, 3).await;
    served.aggregator.drain(DEADLINE).await.expect("drained");
    assert_eq!(served.aggregator.count().await.expect("a count"), 3);
}

async fn what_cannot_be_read_becomes_a_dead_letter_and_stops_nothing(bus: Bus) {
    let served = Served::new().await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    let subject = || "logs.shipped.v1".parse().expect("a subject");
    bus.publish_message(Message::new(subject(), "application/json", "{broken")).await.expect("published");
    bus.publish_message(Message::new(subject(), "image/png", "???")).await.expect("published");
    bus.publish(batch("s", &["fine"])).await.expect("published");
    until_there_are(&served.aggregator, 1).await;
    served.aggregator.drain(DEADLINE).await.expect("drained");
    let letters = bus.admin().dead_letters(DeadLetterFilter::default()).await.expect("a list");
    assert_eq!(letters.len(), 2);
}

async fn what_a_shipper_dropped_is_said(bus: Bus) {
    let served = Served::new().await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    let dropped = vec![
        Dropped { severity: Severity::DEBUG, count: 40 },
        Dropped { severity: Severity::INFO, count: 2 },
    ];
    bus.publish(LogBatch { dropped, ..batch("s", &["kept"]) }).await.expect("published");
    until_there_are(&served.aggregator, 2).await;
    let lost = stored(&served.aggregator).await.remove(1).record;
    assert_eq!((lost.service.as_str(), lost.severity), ("s", Severity::WARN));
    assert!(lost.message.starts_with("42 log records of this service were dropped"), "{}", lost.message);
    assert_eq!(lost.attributes["dropped.debug"], 40);
}

async fn a_full_store_leaves_batches_on_the_bus_until_there_is_room(bus: Bus) {
    let served = Served::with(|config| config.max_day_bytes = Some(512 * 1024)).await;
    served.aggregator.consume(&bus).await.expect("subscribed");
    let large = "x".repeat(20_000);
    let mut published = 0;
    while served.at.post(format!(r#"{{"service":"fill","message":"{large}"}}"#)).await.status() == 200 {}
    for n in 0..5 {
        bus.publish(batch("s", &[&format!("{n} {large}")])).await.expect("published");
        published += 1;
    }
    let cleared = served.at.client.delete(served.at.url("/logs")).send().await.expect("an answer");
    assert_eq!(cleared.status(), 200);
    until_there_are(&served.aggregator, published).await;
    assert_eq!(stored(&served.aggregator).await.len() as u64, published, "each once");
}
