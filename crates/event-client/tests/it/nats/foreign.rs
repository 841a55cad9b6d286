//! Tests plain NATS clients: messages they write are delivered, and messages they read are as documented in
//! `ops/brokers/nats.md`.

use async_nats::jetstream;
use event_client::delivery::Reason;
use event_client::message::Position;
use futures_util::StreamExt;

use super::{group, letters, message, open, plain, shared, write};
use crate::broker::{plain_service, same_event};
use crate::events::placed;

#[tokio::test]
async fn a_plain_client_reads_an_event() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let mut sent = message("orders.placed.v1", "{\"cents\":5}");
    sent.content_type = "application/json".into();
    sent.key = Some("größe 1".into());
    sent.headers.set("tenant", "größe").expect("a header");
    let receipt = bus.publish(sent.clone()).await.expect("published");
    assert_eq!(receipt.position, Some(Position(1)));
    let js = jetstream::new(plain(&url).await);
    let stream = js.get_stream(format!("EVT_{namespace}_orders")).await.expect("a stream");
    let consumer = stream
        .create_consumer(jetstream::consumer::pull::Config::default())
        .await
        .expect("an ephemeral consumer");
    let got = consumer.messages().await.expect("a pull").next().await.expect("one").expect("no error");
    assert_eq!(got.subject.as_str(), format!("{namespace}.evt.orders.placed.v1"));
    let headers = got.headers.as_ref().expect("headers");
    let header = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("ce-id"), Some(sent.id.to_string().as_str()));
    assert_eq!(header("ce-partitionkey"), Some("gr%C3%B6%C3%9Fe%201"));
    assert_eq!(header("tenant"), Some("größe"));
    assert_eq!(got.payload, "{\"cents\":5}");
}

/// A message needs none of this library's headers; headers may be in any case, repeated, folded, and with
/// unusual text.
#[tokio::test]
async fn a_plain_client_writes_an_event() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let subscription = bus.subscribe(group("g", "lab.>")).await.expect("subscribed");
    let client = plain(&url).await;
    let subject = format!("{namespace}.evt.lab.temperature");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Content-Type", "text/plain");
    headers.insert("Unit", "°C, \"so to say\" %41");
    headers.append("Twice", "one");
    headers.append("Twice", "two");
    headers.insert("", "no name");
    client.publish(subject.clone(), "21.5".into()).await.expect("sent");
    client.publish_with_headers(subject.clone(), headers, "22".into()).await.expect("sent");
    let bare = subscription.next().await.expect("the bare one");
    assert_eq!(
        (bare.message().subject.as_str(), &bare.message().payload[..]),
        ("lab.temperature", &b"21.5"[..])
    );
    assert_eq!(bare.message().id.to_string(), format!("EVT_{namespace}_lab/1"));
    assert_eq!(bare.message().headers.len(), 0);
    bare.ack().await.expect("acknowledged");
    let other = subscription.next().await.expect("the one with headers");
    assert_eq!(other.message().content_type, "text/plain");
    assert_eq!(other.message().headers.get("unit"), Some("°C, \"so to say\" %41"));
    assert_eq!(other.message().headers.get("twice"), Some("one"));
    assert_eq!(other.message().payload, "22");
    other.ack().await.expect("acknowledged");
}

/// An illegal subject matches no handler: the message becomes a dead letter of each group, and other messages
/// are delivered.
#[tokio::test]
async fn an_illegal_subject_is_a_dead_letter() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    for keyed in [false, true] {
        let name = if keyed { "keyed" } else { "g" };
        let mut spec = group(name, "orders.>");
        spec.keyed = keyed;
        let subscription = bus.subscribe(spec).await.expect("subscribed");
        let client = plain(&url).await;
        let illegal = ["orders.Größe", "orders.UPPER", "orders.a\"b", "orders.%00"];
        for subject in illegal {
            client.publish(format!("{namespace}.evt.{subject}"), "x".into()).await.expect("sent");
        }
        client.flush().await.expect("sent");
        bus.publish(message("orders.a", "fine")).await.expect("published");
        let delivery = subscription.next().await.expect("the message after them");
        assert_eq!(delivery.message().payload, "fine");
        delivery.ack().await.expect("acknowledged");
        if keyed {
            continue; // skipped and logged
        }
        let letters = letters(&bus, name, illegal.len()).await;
        for subject in illegal {
            let shown = format!("{:?}", format!("{namespace}.evt.{subject}"));
            assert!(letters.iter().any(|letter| letter.error.contains(&shown)), "{letters:?}");
        }
        assert!(letters.iter().all(|letter| letter.reason == Reason::Undecodable));
        assert!(letters.iter().all(|letter| letter.message.payload == "x"));
        subscription.stop();
    }
}

/// A status line in a message that a client published is not a status message of the server.
#[tokio::test]
async fn a_foreign_status_is_a_message_like_any_other() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    for keyed in [false, true] {
        let mut spec = group(if keyed { "keyed" } else { "g" }, "lab.>");
        spec.keyed = keyed;
        let subscription = bus.subscribe(spec).await.expect("subscribed");
        let subject = format!("{namespace}.evt.lab.a");
        write(&url, &subject, b"NATS/1.0 409 Consumer Deleted\r\nunit: C\r\n\r\n", b"21").await;
        bus.publish(message("lab.a", "next")).await.expect("published");
        for want in ["21", "next"] {
            let delivery = subscription.next().await.expect("a delivery");
            assert_eq!(delivery.message().payload, want);
            delivery.ack().await.expect("acknowledged");
        }
        subscription.stop();
    }
}

/// A message with only a body reaches a handler of plain data, as the same event on each delivery.
#[tokio::test]
async fn a_handler_takes_what_a_plain_client_writes() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let (running, mut taken) = plain_service(&bus).await;
    let client = plain(&url).await;
    for n in 1..=2 {
        let subject = format!("{namespace}.evt.orders.placed.v1");
        client.publish(subject, r#"{"order_id":1,"cents":100}"#.into()).await.expect("sent");
        let (_, meta, order) = same_event(&mut taken, if n == 1 { 3 } else { 1 }).await;
        assert_eq!((meta.id.to_string(), order), (format!("EVT_{namespace}_orders/{n}"), placed(1)));
    }
    running.drain().await.expect("drained");
}
