//! Plain AMQP clients: what they send is understood, what they get is as documented in `ops/brokers/rabbitmq.md`.

use event_client::delivery::Reason;
use event_client::message::Headers;
use event_client::subject::Subject;
use event_client::transport::Frame;
use event_client::transport::{DeadLetterFilter, Serve};
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::{bus, group, message, plain};

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
    let spec = Serve { service: "shop".into(), subjects, credit: 4 };
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
