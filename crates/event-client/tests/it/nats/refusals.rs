//! Tests bad input: each case is a clear error, and does not affect other messages.

use std::time::Duration;

use async_nats::jetstream;
use event_client::ErrorKind;
use event_client::message::Durability;
use test_servers::{Generation, Nats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::{group, message, open, plain, refused, shared};

#[tokio::test]
async fn no_server_is_told_within_seconds() {
    let told = refused("nats://127.0.0.1:1", ErrorKind::Unavailable, "no NATS server");
    timeout(Duration::from_secs(60), told).await.expect("it does not try for ever");
}

#[tokio::test]
async fn a_server_without_jetstream() {
    for generation in Generation::ALL {
        let options = Nats::options().generation(generation).without_jetstream();
        let server = options.start().await.expect("a server");
        refused(&server.url(), ErrorKind::Unsupported, "-js").await;
    }
}

/// A fake server that sends the given INFO line, and the answers that a client needs to continue.
async fn pretender(info: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await? > 0 {
                    stream.write_all(b"PONG\r\n").await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    format!("nats://127.0.0.1:{port}")
}

/// No older server is available, but its INFO line is known.
#[tokio::test]
async fn a_server_that_is_too_old() {
    let url = pretender(
        r#"{"server_id":"a","version":"2.8.4","go":"go1.17","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"jetstream":true,"client_id":1,"proto":1}"#,
    )
    .await;
    refused(&url, ErrorKind::Unsupported, "2.8.4 is too old; 2.9 or newer").await;
    let url = pretender(
        r#"{"server_id":"a","version":"2.10.1","go":"go1.21","host":"127.0.0.1","port":4222,"headers":false,"max_payload":1048576,"jetstream":true,"client_id":1,"proto":1}"#,
    )
    .await;
    refused(&url, ErrorKind::Unsupported, "headers switched off").await;
}

#[tokio::test]
async fn something_that_is_no_nats_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = open(&format!("nats://127.0.0.1:{port}")).await.expect_err("no NATS");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("no NATS server"), "{error}");
}

#[tokio::test]
async fn a_payload_above_the_servers_limit_is_refused_alone() {
    let server = Nats::options().max_payload(100_000).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let limit = bus.capabilities().max_payload;
    assert!(limit < 100_000, "{limit}");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let window = [
        bus.publish(message("orders.a", "before")),
        bus.publish(message("orders.a", &"x".repeat(200_000))),
        bus.publish(message("orders.a", &"y".repeat(limit - 200))),
    ];
    let mut results = Vec::new();
    for confirm in window {
        results.push(confirm.await.map_err(|error| error.kind()));
    }
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert_eq!(results[1], Err(ErrorKind::TooLarge));
    for want in [6, limit - 200] {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload.len(), want);
        delivery.ack().await.expect("acknowledged");
    }
    let url = format!("{}?max_payload=90000", server.url());
    refused(&url, ErrorKind::Config, "`max_payload`").await;
    let tiny = Nats::options().max_payload(1024).start().await.expect("a server");
    refused(&tiny.url(), ErrorKind::Config, "leaves no room").await;
}

/// The operator lowers the limit while the client is connected: the limit in the server's refusal is the one
/// that applies.
#[tokio::test]
async fn a_stream_that_takes_less_refuses_that_message_alone() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    bus.publish(message("orders.a", "makes the stream")).await.expect("stored");
    let js = jetstream::new(plain(&url).await);
    let mut stream = js.get_stream(format!("EVT_{namespace}_orders")).await.expect("a stream");
    let mut config = stream.info().await.expect("its settings").config.clone();
    config.max_message_size = 500;
    js.update_stream(config).await.expect("updated");
    let error = bus.publish(message("orders.a", &"x".repeat(1000))).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error:?}");
    bus.publish(message("orders.a", "fits")).await.expect("stored");
}

/// A stream of this library that another client created with other settings is compared, reported, and not
/// changed.
#[tokio::test]
async fn a_stream_with_other_settings() {
    for generation in Generation::ALL {
        let server = Nats::shared(generation).await;
        let url = format!("{}?namespace=other-stream", server.url());
        let js = jetstream::new(plain(&url).await);
        let mine = jetstream::stream::Config {
            name: "EVT_other-stream_orders".into(),
            subjects: vec!["other-stream.evt.orders".into(), "other-stream.evt.orders.>".into()],
            retention: jetstream::stream::RetentionPolicy::WorkQueue,
            max_messages: 10,
            ..Default::default()
        };
        js.create_stream(mine).await.expect("made by hand");
        let bus = open(&url).await.expect("opened");
        let error = bus.publish(message("orders.a", "x")).await.expect_err("it differs");
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        let text = error.to_string();
        assert!(text.contains("EVT_other-stream_orders") && text.contains("retention"), "{text}");
        let error = bus.subscribe(group("g", "orders.>")).await.expect_err("it differs");
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        bus.publish(message("billing.a", "x")).await.expect("another topic is not harmed");
        let mut stream = js.get_stream("EVT_other-stream_orders").await.expect("the stream still exists");
        let config = &stream.info().await.expect("its settings").config;
        assert_eq!(config.retention, jetstream::stream::RetentionPolicy::WorkQueue);
        assert_eq!(config.max_messages, 10);
    }
}

/// A stream of another application captures this library's subjects.
#[tokio::test]
async fn a_stream_of_others_over_our_subjects() {
    let (url, namespace) = shared().await;
    let js = jetstream::new(plain(&url).await);
    let theirs = jetstream::stream::Config {
        name: format!("theirs-{namespace}"),
        subjects: vec![format!("{namespace}.>")],
        ..Default::default()
    };
    js.create_stream(theirs).await.expect("made by hand");
    let bus = open(&url).await.expect("opened");
    let error = bus.publish(message("orders.a", "x")).await.expect_err("it overlaps");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("overlap"), "{error}");
}

/// A consumer whose settings do not fit the group.
#[tokio::test]
async fn a_consumer_with_other_settings() {
    for generation in Generation::ALL {
        let server = Nats::shared(generation).await;
        let url = format!("{}?namespace=other-consumer", server.url());
        let bus = open(&url).await.expect("opened");
        bus.publish(message("orders.a", "x")).await.expect("stored");
        let js = jetstream::new(plain(&url).await);
        let stream = js.get_stream("EVT_other-consumer_orders").await.expect("a stream");
        let mine = jetstream::consumer::pull::Config {
            durable_name: Some("g".into()),
            ack_policy: jetstream::consumer::AckPolicy::None,
            ..Default::default()
        };
        stream.create_consumer(mine).await.expect("made by hand");
        let error = bus.subscribe(group("g", "orders.>")).await.expect_err("it differs");
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        let text = error.to_string();
        assert!(text.contains("ack_policy") && text.contains('g'), "{text}");
        bus.subscribe(group("other", "orders.>")).await.expect("another group is not harmed");
        let mut theirs: jetstream::consumer::PullConsumer = stream.get_consumer("g").await.expect("there");
        let policy = theirs.info().await.expect("its settings").config.ack_policy;
        assert_eq!(policy, jetstream::consumer::AckPolicy::None);
    }
}

#[tokio::test]
async fn streams_are_not_made_where_that_is_forbidden() {
    let (url, namespace) = shared().await;
    let bus = open(&format!("{url}&provision=verify")).await.expect("opened");
    let error = bus.publish(message("orders.a", "x")).await.expect_err("no stream");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("topology apply"), "{error}");
    let js = jetstream::new(plain(&url).await);
    assert!(js.get_stream(format!("EVT_{namespace}_orders")).await.is_err());
}

#[tokio::test]
async fn durability_that_the_server_lacks_is_refused() {
    let (url, _) = shared().await;
    let bus = open(&url).await.expect("opened");
    let mut strong = message("orders.a", "x");
    strong.durability = Durability::Fsync;
    let error = bus.publish(strong.clone()).await.expect_err("two minutes");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let server = Nats::options().generation(Generation::New).fsync().start().await.expect("a server");
    let bus = open(&format!("{}?sync=always", server.url())).await.expect("opened");
    bus.publish(strong).await.expect("on the disk");
}

/// More replicas than servers.
#[tokio::test]
async fn replicas_without_a_cluster() {
    let (url, _) = shared().await;
    let bus = open(&format!("{url}&replicas=3")).await.expect("opened");
    let error = bus.publish(message("orders.a", "x")).await.expect_err("one server");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("replicas"), "{error}");
}

/// Unconfirmed messages are kept in memory to be sent again; so their number is limited.
#[tokio::test]
async fn too_many_unconfirmed_are_refused_and_their_room_comes_back() {
    let server = Nats::options().start().await.expect("a server");
    let bus = open(&format!("{}?publish_timeout=1s", server.url())).await.expect("opened");
    bus.publish(message("orders.a", "the stream is there")).await.expect("stored");
    server.pause().expect("paused");
    let large = "x".repeat(900_000);
    let window: Vec<_> = (0..400).map(|_| bus.publish(message("orders.a", &large))).collect();
    let mut full = 0;
    for confirm in window {
        match confirm.await.expect_err("no confirmation").kind() {
            ErrorKind::Full => full += 1,
            kind => assert!(matches!(kind, ErrorKind::Timeout | ErrorKind::Unavailable), "{kind:?}"),
        }
    }
    assert!((50..200).contains(&full), "{full}");
    let error = bus.publish(message("orders.a", "one more")).await.expect_err("no confirmation");
    assert_ne!(error.kind(), ErrorKind::Full, "{error:?}");
}
