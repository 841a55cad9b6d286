//! Tests plain AMQP clients: messages they publish are understood, and messages they receive are as
//! documented in `ops/brokers/rabbitmq.md`.

use event_client::bus::{Bus, Settings};
use event_client::delivery::Reason;
use event_client::envelope::{Envelope, Mode};
use event_client::message::Headers;
use event_client::subject::Subject;
use event_client::transport::Frame;
use event_client::transport::{DeadLetterFilter, Serve};
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::{bus, group, message, plain};
use crate::broker::{plain_service, same_event};
use crate::events::placed;

#[tokio::test]
async fn odd_headers_and_subjects_of_others_harm_nothing() {
    let (url, bus) = bus("odd").await;
    let subscription = bus.subscribe(group("g", ">")).await.expect("subscribed");
    let (_connection, channel) = plain(&url).await;
    let mut table = FieldTable::default();
    table.insert("odd".into(), AMQPValue::LongString(vec![0xff, 0xfe, b'\n', 0].into()));
    table.insert("Number".into(), AMQPValue::LongInt(7));
    table.insert("nested".into(), AMQPValue::FieldTable(FieldTable::default()));
    let send = async |key: &str, body: &[u8]| {
        let properties = BasicProperties::default().with_headers(table.clone());
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("backbone.evt".into(), key.into(), options, body, properties)
            .await
            .expect("sent");
    };
    send("Orders Placed!", b"no subject").await;
    send("orders.placed", b"fine").await;
    let delivery = subscription.next().await.expect("a delivery");
    assert_eq!(&*delivery.message().payload, b"fine");
    assert_eq!(delivery.message().headers.get("number"), Some("7"));
    delivery.ack().await.expect("acknowledged");
    let letters = loop {
        let letters = bus.admin().dead_letters(DeadLetterFilter::default()).await.expect("the letters");
        if !letters.is_empty() {
            break letters;
        }
    };
    assert_eq!((letters[0].reason, &*letters[0].message.payload), (Reason::Undecodable, &b"no subject"[..]));
    assert!(letters[0].error.contains("Orders Placed!"), "{}", letters[0].error);
}

#[tokio::test]
async fn a_plain_client_reads_an_event() {
    let (url, bus) = bus("plain").await;
    let (_connection, channel) = plain(&url).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("a queue");
    let queue = queue.name().clone();
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.clone(), "backbone.evt".into(), "orders.#".into(), options, table)
        .await
        .expect("bound");
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer =
        channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.expect("consumes");
    let mut sent = message("orders.placed.v1", "body");
    sent.key = Some("k".into());
    sent.headers.set("tenant", "größe").expect("a header");
    bus.publish(sent.clone()).await.expect("stored");
    let got = consumer.next().await.expect("a delivery").expect("no error");
    assert_eq!((got.routing_key.as_str(), got.data.as_slice()), ("orders.placed.v1", &b"body"[..]));
    assert_eq!(got.properties.content_type().as_ref().map(|text| text.as_str()), Some("text/plain"));
    assert_eq!(got.properties.message_id().as_ref().map(|text| text.to_string()), Some(sent.id.to_string()));
    let headers = got.properties.headers().as_ref().expect("headers").inner();
    assert_eq!(headers.get("tenant"), Some(&AMQPValue::LongString("größe".into())));
    assert_eq!(headers.get("ce-partitionkey"), Some(&AMQPValue::LongString("k".into())));
}

#[tokio::test]
async fn a_plain_client_calls_a_service() {
    let (url, bus) = bus("calls").await;
    let subjects = vec![Subject::new("shop.quote").expect("a subject")];
    let spec = Serve::new("shop", subjects, 4);
    let mut requests = bus.requests().serve(spec).await.expect("served");
    let (_connection, channel) = plain(&url).await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let replies = "amq.rabbitmq.reply-to";
    let mut consumer = channel
        .basic_consume(replies.into(), "".into(), options, FieldTable::default())
        .await
        .expect("consumes");
    let properties =
        BasicProperties::default().with_reply_to(replies.into()).with_correlation_id("call-1".into());
    let (key, options) = ("backbone.rpc.shop.quote".into(), BasicPublishOptions::default());
    channel.basic_publish("".into(), key, options, b"how much?", properties).await.expect("sent");
    let mut request = requests.recv().await.expect("a request");
    assert_eq!(&*request.message.payload, b"how much?");
    let frame = Frame {
        headers: Headers::new(),
        content_type: "text/plain".into(),
        payload: "42".into(),
        last: true,
    };
    request.responder.send(frame).await.expect("answered");
    let got = consumer.next().await.expect("an answer").expect("no error");
    assert_eq!(got.data, b"42");
    assert_eq!(got.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("call-1"));
}

/// A message without an id gets one, which stays the same; two equal messages are two events.
#[tokio::test]
async fn a_handler_takes_what_a_plain_client_writes() {
    let (url, bus) = bus("taken").await;
    let (running, mut taken) = plain_service(&bus).await;
    let (_connection, channel) = plain(&url).await;
    let mut keys = Vec::new();
    for deliveries in [3, 1] {
        channel
            .basic_publish(
                "backbone.evt".into(),
                "orders.placed.v1".into(),
                BasicPublishOptions::default(),
                br#"{"order_id":1,"cents":100}"#,
                BasicProperties::default(),
            )
            .await
            .expect("sent");
        let (key, _, order) = same_event(&mut taken, deliveries).await;
        assert_eq!(order, placed(1));
        keys.push(key);
    }
    assert_ne!(keys[0], keys[1]);
    running.drain().await.expect("drained");
}

/// Events from other clients are read with both separators of the AMQP binding, with native values, and with
/// the prefix that other RabbitMQ clients use.
#[tokio::test]
async fn binary_events_of_others_are_read() {
    let (url, bus) = bus("binding").await;
    let subscription = bus.subscribe(group("g", ">")).await.expect("subscribed");
    let (_connection, channel) = plain(&url).await;
    let text = |value: &str| AMQPValue::LongString(value.into());
    let seconds = 1_522_900_584;
    for (prefix, time) in [
        ("cloudEvents:", text("2018-04-05T03:56:24Z")),
        ("cloudEvents_", AMQPValue::Timestamp(seconds)),
        ("cloudEvents_", AMQPValue::LongLongInt(seconds as i64 * 1000)),
        ("ce-", text("2018-04-05T03:56:24Z")),
    ] {
        let mut table = FieldTable::default();
        for (name, value) in [
            ("specversion", text("1.0")),
            ("id", text("1234-1234-1234")),
            ("source", text("/größe")),
            ("type", text("orders.placed.v1")),
            ("partitionkey", text("k 1")),
            ("time", time),
            ("retries", AMQPValue::LongLongInt(7)),
            ("yes", AMQPValue::Boolean(true)),
        ] {
            table.insert(format!("{prefix}{name}").into(), value);
        }
        let properties =
            BasicProperties::default().with_headers(table).with_content_type("application/json".into());
        let options = BasicPublishOptions::default();
        let body = br#"{"order_id":1,"cents":100}"#;
        channel
            .basic_publish("backbone.evt".into(), "orders.placed.v1".into(), options, body, properties)
            .await
            .expect("sent");
        let delivery = subscription.next().await.expect("a delivery");
        let message = delivery.message();
        assert_eq!(
            (message.id.to_string().as_str(), message.key.as_deref()),
            ("1234-1234-1234", Some("k 1"))
        );
        let read = Envelope::read(message).expect("an event");
        assert_eq!(
            (read.meta.source.as_str(), read.meta.event_type.as_str()),
            ("/größe", "orders.placed.v1")
        );
        assert_eq!(read.meta.time.map(|at| at.as_second()), Some(seconds as i64), "{prefix}");
        let mut extensions = read.meta.extensions.clone();
        extensions.sort();
        assert_eq!(extensions, [("retries".into(), "7".into()), ("yes".into(), "true".into())]);
        assert_eq!(read.decode::<crate::events::OrderPlaced>().expect("decoded"), placed(1));
        delivery.ack().await.expect("acknowledged");
    }
}

#[tokio::test]
async fn a_plain_client_reads_a_binary_event() {
    let (url, bus) = bus("binary").await;
    let (_connection, channel) = plain(&url).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("a queue");
    let queue = queue.name().clone();
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.clone(), "backbone.evt".into(), "orders.#".into(), options, table)
        .await
        .expect("bound");
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer =
        channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.expect("consumes");
    let settings = Settings { source: "/größe 1".into(), mode: Mode::Binary, ..Settings::default() };
    let bus = Bus::with_transport(bus, settings).expect("a bus");
    bus.publish(placed(7)).id("order 7").header("x-delivery-count", "9").await.expect("stored");
    let got = consumer.next().await.expect("a delivery").expect("no error");
    let content_type = got.properties.content_type().as_ref().map(|text| text.as_str());
    assert_eq!(content_type, Some("application/json"));
    let headers = got.properties.headers().as_ref().expect("headers").inner();
    for (name, value) in [
        ("cloudEvents_specversion", "1.0"),
        ("cloudEvents_id", "order 7"),
        ("cloudEvents_source", "/größe 1"),
        ("cloudEvents_type", "orders.placed.v1"),
        ("cloudEvents_partitionkey", "7"),
        ("bus-header-x-delivery-count", "9"),
    ] {
        assert_eq!(headers.get(name), Some(&AMQPValue::LongString(value.into())), "{name}");
    }
    assert_eq!(headers.get("traceparent"), headers.get("cloudEvents_traceparent"));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("ce-")), "{headers:?}");
    assert_eq!(got.data.as_slice(), br#"{"order_id":7,"cents":100}"#);
}
