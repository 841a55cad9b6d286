//! Tests that the durability promised to publishers is the one that the stream provides.

use event_client::ErrorKind;
use event_client::message::Durability;
use event_client::transport::Severity;
use serde_json::{Value, json};
use test_servers::{Generation, Nats};

use super::{message, open, plain};

/// Creates a topic's stream with settings that another client may have chosen.
async fn make_stream(url: &str, namespace: &str, settings: Value) {
    let name = format!("EVT_{namespace}_orders");
    let mut config = json!({
        "name": name,
        "subjects": [format!("{namespace}.evt.orders"), format!("{namespace}.evt.orders.>")],
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "max_age": 7_u64 * 86_400_000_000_000,
        "discard": "old",
        "duplicate_window": 120_000_000_000_u64,
    });
    for (setting, value) in settings.as_object().expect("an object") {
        config[setting] = value.clone();
    }
    let body = serde_json::to_vec(&config).expect("plain data");
    let answer = plain(url)
        .await
        .request(format!("$JS.API.STREAM.CREATE.{name}"), body.into())
        .await
        .expect("an answer");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer.get("error").is_none(), "{answer}");
}

#[tokio::test]
async fn a_stream_that_confirms_before_it_writes_keeps_no_promise() {
    let server = Nats::options().generation(Generation::New).fsync().start().await.expect("a server");
    make_stream(&server.url(), "asynchronous", json!({"persist_mode": "async"})).await;
    for options in ["", "&sync=always", "&provision=off", "&provision=off&sync=always", "&provision=update"] {
        let bus = open(&format!("{}?namespace=asynchronous{options}", server.url())).await.expect("opened");
        let error = bus.publish(message("orders.placed", "x")).await.expect_err("it cannot be kept");
        assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported), "{options}: {error:?}");
        assert!(error.to_string().contains("persist_mode"), "{options}: {error}");
        let findings = bus.admin().diagnose().await.expect("looked at");
        let found = findings.iter().find(|finding| finding.check == "durability").expect("reported");
        assert_eq!(found.severity, Severity::Bad, "{found:?}");
        assert!(found.text.contains("persist_mode"), "{found:?}");
    }
    // Streams of another namespace are not affected.
    let bus = open(&format!("{}?namespace=neighbour&sync=always", server.url())).await.expect("opened");
    bus.publish(message("orders.placed", "x")).await.expect("kept");
}

#[tokio::test]
async fn a_stream_in_memory_promises_nothing() {
    for generation in Generation::ALL {
        let server = Nats::shared(generation).await;
        let url = format!("{}?namespace=in-memory-{}", server.url(), generation as u8);
        let bus = open(&format!("{url}&storage=memory")).await.expect("opened");
        assert_eq!(bus.capabilities().max_durability, Durability::Default);
        let mut sent = message("orders.placed", "x");
        sent.durability = Durability::PageCache;
        let error = bus.publish(sent.clone()).await.expect_err("it cannot be kept");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        bus.publish(message("orders.placed", "x")).await.expect("stored in memory");
        // The stream keeps its settings, whatever the URL requests.
        let bus = open(&format!("{url}&provision=off")).await.expect("opened");
        let error = bus.publish(sent).await.expect_err("it cannot be kept");
        assert!(error.to_string().contains("memory"), "{error:?}");
    }
}
