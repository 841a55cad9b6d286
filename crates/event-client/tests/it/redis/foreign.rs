//! Tests plain clients: entries they write are delivered, and entries they read are as documented.

use std::collections::HashMap;
use std::time::Duration;

use event_client::delivery::Reason;
use event_client::message::{Headers, Position};
use event_client::subject::Subject;
use event_client::transport::{DeadLetterFilter, Frame, Serve};
use futures_util::StreamExt;

use super::{group, message, open, plain, shared};
use crate::broker::{plain_service, same_event};
use crate::events::placed;

/// An entry's fields as a plain client reads them.
type Fields = HashMap<String, Vec<u8>>;

#[tokio::test]
async fn a_plain_client_reads_an_event() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let mut sent = message("orders.placed.v1", "{\"cents\":5}");
    sent.content_type = "application/json".into();
    sent.key = Some("größe 1".into());
    sent.headers.set("tenant", "a").expect("a header");
    let receipt = bus.publish(sent.clone()).await.expect("published");
    let mut client = plain(&url).await;
    let entries: Vec<(String, Fields)> = redis::cmd("XRANGE")
        .arg(format!("{namespace}:{{orders}}"))
        .arg("-")
        .arg("+")
        .query_async(&mut client)
        .await
        .expect("read");
    let [(id, fields)] = entries.as_slice() else { panic!("one entry: {entries:?}") };
    let field = |name: &str| String::from_utf8(fields[name].clone()).expect("text");
    assert_eq!(field("bus-subject"), "orders.placed.v1");
    assert_eq!(field("content-type"), "application/json");
    assert_eq!(field("ce-id"), sent.id.to_string());
    assert_eq!(field("ce-partitionkey"), "gr%C3%B6%C3%9Fe%201");
    assert_eq!(field("tenant"), "a");
    assert_eq!(field("data"), "{\"cents\":5}");
    let (ms, seq) = id.split_once('-').expect("an id");
    let position = (ms.parse::<u128>().expect("ms") << 64) | seq.parse::<u128>().expect("seq");
    assert_eq!(receipt.position, Some(Position(position)));
}

/// An entry needs none of this library's fields, and may contain any byte.
#[tokio::test]
async fn a_plain_client_writes_an_event() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let subscription = bus.subscribe(group("g", "lab.>")).await.expect("subscribed");
    let bare = bus.subscribe(group("bare", "lab")).await.expect("subscribed");
    let mut client = plain(&url).await;
    let key = format!("{namespace}:{{lab}}");
    let mut bare_entry = redis::cmd("XADD");
    bare_entry
        .arg(&key)
        .arg("*")
        .arg("data")
        .arg("21.5")
        .arg(&b"unit\r\n\xffx"[..])
        .arg(&b"\x00\xff\r\n"[..]);
    let id: String = bare_entry.query_async(&mut client).await.expect("written");
    redis::cmd("XADD")
        .arg(&key)
        .arg("*")
        .arg("bus-subject")
        .arg("lab.temperature")
        .arg("Content-Type")
        .arg("text/plain")
        .arg("data")
        .arg(&b"\x00\xff"[..])
        .exec_async(&mut client)
        .await
        .expect("written");
    let first = bare.next().await.expect("the bare entry");
    assert_eq!((first.message().subject.as_str(), &first.message().payload[..]), ("lab", &b"21.5"[..]));
    assert_eq!(first.message().id.to_string(), format!("lab/{id}"));
    assert_eq!(first.message().headers.len(), 1);
    first.ack().await.expect("acknowledged");
    let second = subscription.next().await.expect("the other entry");
    assert_eq!(&second.message().payload[..], b"\x00\xff");
    assert_eq!(second.message().content_type, "text/plain");
    second.ack().await.expect("acknowledged");
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
        let mut client = plain(&url).await;
        let illegal = redis::cmd("XADD")
            .arg(format!("{namespace}:{{orders}}"))
            .arg("*")
            .arg("bus-subject")
            .arg("orders.Größe ..")
            .arg("data")
            .arg("x")
            .clone();
        illegal.exec_async(&mut client).await.expect("written");
        bus.publish(message("orders.a", "fine")).await.expect("published");
        let delivery = subscription.next().await.expect("the message after it");
        assert_eq!(delivery.message().payload, "fine");
        delivery.ack().await.expect("acknowledged");
        let filter = DeadLetterFilter { group: Some(group_name(name)), ..Default::default() };
        let letter = loop {
            if let Some(letter) = bus.admin().dead_letters(filter.clone()).await.expect("listed").pop() {
                break letter;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!((letter.reason, &letter.message.payload[..]), (Reason::Undecodable, &b"x"[..]));
        subscription.stop();
    }
}

fn group_name(name: &str) -> event_client::subject::Group {
    event_client::subject::Group::new(name).expect("a group")
}

/// An entry that another client deletes while it waits for a retry is not delivered again, and nothing
/// blocks.
#[tokio::test]
async fn a_deleted_entry_stops_nobody() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    bus.publish(message("orders.a", "deleted")).await.expect("published");
    let delivery = subscription.next().await.expect("a delivery");
    delivery.retry(Duration::from_millis(200), "later").await.expect("parked");
    let mut client = plain(&url).await;
    let trimmed: i64 = redis::cmd("XTRIM")
        .arg(format!("{namespace}:{{orders}}"))
        .arg("MAXLEN")
        .arg(0)
        .query_async(&mut client)
        .await
        .expect("trimmed");
    assert_eq!(trimmed, 1);
    bus.publish(message("orders.a", "next")).await.expect("published");
    let next = subscription.next().await.expect("the next message");
    assert_eq!(next.message().payload, "next");
    next.ack().await.expect("acknowledged");
}

/// A request is a list entry with header lines and a body; the reply is published to a channel.
#[tokio::test]
async fn a_plain_client_calls_a_service() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let spec = Serve::new("shop", vec![Subject::new("shop.quote").expect("a subject")], 1);
    let mut requests = bus.requests().serve(spec).await.expect("served");
    let serving = tokio::spawn(async move {
        let mut request = requests.recv().await.expect("a request");
        assert_eq!(request.message.headers.get("tenant"), Some("a"));
        let payload = request.message.payload.clone();
        let frame = Frame { headers: Headers::new(), content_type: "text/plain".into(), payload, last: true };
        request.responder.send(frame).await.expect("sent");
    });
    let client = redis::Client::open(url.split('?').next().expect("a URL")).expect("a client");
    let mut listening = client.get_async_pubsub().await.expect("a connection");
    listening.subscribe("my-answers").await.expect("subscribed");
    let mut connection = plain(&url).await;
    redis::cmd("RPUSH")
        .arg(format!("{namespace}:{{rpc:shop.quote}}"))
        .arg("bus-reply-to: my-answers\nbus-request: 1\ntenant: a\n\nhow much?")
        .exec_async(&mut connection)
        .await
        .expect("queued");
    let answer = listening.on_message().next().await.expect("an answer");
    let text: String = answer.get_payload().expect("text");
    let (head, body) = text.split_once("\n\n").expect("a head and a body");
    assert_eq!(body, "how much?");
    assert!(head.lines().any(|line| line == "bus-request: 1"), "{head}");
    assert!(head.lines().any(|line| line == "bus-frame: last"), "{head}");
    serving.await.expect("served");
}

/// An entry with only a body reaches a handler of plain data, as the same event on each delivery.
#[tokio::test]
async fn a_handler_takes_what_a_plain_client_writes() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let (running, mut taken) = plain_service(&bus).await;
    let mut client = plain(&url).await;
    let mut add = redis::cmd("XADD");
    add.arg(format!("{namespace}:{{orders}}")).arg("*").arg("bus-subject").arg("orders.placed.v1");
    add.arg("data").arg(r#"{"order_id":1,"cents":100}"#);
    let id: String = add.query_async(&mut client).await.expect("written");
    let (_, meta, order) = same_event(&mut taken, 3).await;
    assert_eq!((meta.id.to_string(), order), (format!("orders/{id}"), placed(1)));
    let next: String = add.query_async(&mut client).await.expect("written");
    assert_eq!(same_event(&mut taken, 1).await.1.id.to_string(), format!("orders/{next}"));
    running.drain().await.expect("drained");
}
