//! Cases for messages without an envelope, delivered to handlers that accept plain data.

use std::time::Duration;

use event_client::bus::Settings;
use event_client::codec::Codec;
use event_client::delivery::Reason;
use event_client::envelope::{Meta, PLAIN_SOURCE};
use event_client::message::Message;
use event_client::service::{self, Attempt, Handler, Msg, Raw, RetryPolicy, Service, State};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::UnboundedSender;

use crate::case::cases;
use crate::events::{Weighed, bus, channel, dead, told};
use crate::exam::Exam;
use crate::message::{on, subject};

cases! {
    plain_data_reaches_handlers_that_take_it;
    plain_data_is_the_same_event_in_each_attempt;
    events_reach_handlers_of_plain_data_as_events;
    a_broken_event_is_no_plain_data;
}

type Seen<T> = State<UnboundedSender<T>>;

fn plain(name: &str, content_type: &str, payload: impl Into<bytes::Bytes>) -> Message {
    Message::new(subject(name), content_type, payload)
}

fn quick() -> RetryPolicy {
    RetryPolicy::default().backoff(Duration::from_millis(1), Duration::from_millis(1))
}

/// `Msg` accepts bare JSON and MessagePack, `Raw` any bytes; the attributes are derived.
async fn plain_data_reaches_handlers_that_take_it(exam: Exam) {
    async fn weigh(State(seen): Seen<(f64, Meta)>, meta: service::Meta, Msg(weighed): Msg<Weighed>) {
        let _ = seen.send((weighed.grams, meta.0));
    }
    async fn keep(State(seen): Seen<Message>, Raw(message): Raw) {
        let _ = seen.send((*message).clone());
    }
    let (weighing, mut weighed) = channel();
    let (keeping, mut kept) = channel();
    let ours = bus(&exam, Settings::default());
    let service = Service::new("scale").bus(ours.clone()).on(weigh.plain()).with_state(weighing);
    let scale = exam.ok("the service", service.start()).await;
    let service = Service::new("archive").bus(ours).on_subject("orders.>", keep.plain()).with_state(keeping);
    let archive = exam.ok("the service", service.start()).await;
    let before = Timestamp::now() - SignedDuration::from_secs(2);
    let mut packed = Vec::new();
    Codec::MsgPack.encode(&Weighed { grams: 2.5 }, &mut packed).expect("encoded");
    let json = || "{\"grams\": 2.5}".to_owned();
    for sent in [
        plain("orders.weighed.v1", "", json()),
        plain("orders.weighed.v1", "application/json", json()),
        plain("orders.weighed.v1", "Text/JSON; charset=UTF-8", json()),
        plain("orders.weighed.v1", "", packed.clone()),
        plain("orders.weighed.v1", "application/x-msgpack", packed),
    ] {
        exam.publish(sent.clone()).await;
        let (grams, meta) = told(&exam, "the handler of the type", &mut weighed).await;
        assert_eq!(grams, 2.5);
        assert_eq!(
            (&meta.id, meta.source.as_str(), meta.event_type.as_str()),
            (&sent.id, PLAIN_SOURCE, "orders.weighed.v1")
        );
        let time = meta.time.expect("the time of the publication");
        assert!(before <= time && time <= Timestamp::now() + SignedDuration::from_secs(2), "{time}");
        assert_eq!(told(&exam, "the handler of everything", &mut kept).await, sent);
    }
    for payload in [&b""[..], b"\x00\xff\xc1", b"{", b"hello"] {
        let mut sent = plain("orders.scanned", "image/png", payload.to_vec());
        sent.headers.set("tenant", "a").expect("a valid header");
        exam.publish(sent.clone()).await;
        assert_eq!(told(&exam, "the handler of everything", &mut kept).await, sent);
    }
    exam.ok("drain", scale.drain()).await;
    exam.ok("drain", archive.drain()).await;
}

/// Id, time and key are derived in the same way on each attempt, so that a handler can deduplicate its
/// effects.
async fn plain_data_is_the_same_event_in_each_attempt(exam: Exam) {
    async fn weigh(
        State(seen): Seen<(String, Meta)>,
        attempt: Attempt,
        meta: service::Meta,
        Msg(_): Msg<Weighed>,
    ) -> Result<(), &'static str> {
        let _ = seen.send((attempt.idempotency_key().to_owned(), meta.0));
        if attempt.number() < 3 { Err("again") } else { Ok(()) }
    }
    let (seen, mut attempts) = channel();
    let service = Service::new("scale").bus(bus(&exam, Settings::default()));
    let service = service.on(weigh.plain().retry(quick())).with_state(seen);
    let running = exam.ok("the service", service.start()).await;
    exam.publish(plain("orders.weighed.v1", "", "{\"grams\":1}")).await;
    let first = told(&exam, "the first attempt", &mut attempts).await;
    for _ in 0..2 {
        assert_eq!(told(&exam, "another attempt", &mut attempts).await, first);
    }
    exam.ok("drain", running.drain()).await;
}

/// A handler that accepts plain data accepts events too, with their own attributes.
async fn events_reach_handlers_of_plain_data_as_events(exam: Exam) {
    async fn weigh(State(seen): Seen<(f64, Meta)>, meta: service::Meta, Msg(weighed): Msg<Weighed>) {
        let _ = seen.send((weighed.grams, meta.0));
    }
    let (seen, mut weighed) = channel();
    let ours = bus(&exam, Settings { source: "/ours".into(), ..Settings::default() });
    let service = Service::new("scale").bus(ours.clone()).on(weigh.plain().concurrency(1)).with_state(seen);
    let running = exam.ok("the service", service.start()).await;
    exam.ok("publish", ours.publish(Weighed { grams: 7.0 }).id("1").into_future()).await;
    let body =
        r#"{"specversion":"1.0","id":"2","source":"/others","type":"orders.weighed.v1","data":{"grams":8}}"#;
    // As the NATS binding allows: a structured event without a header or content type that marks it as one.
    exam.publish(plain("orders.weighed.v1", "", body)).await;
    for want in [(7.0, "1", "/ours"), (8.0, "2", "/others")] {
        let (grams, meta) = told(&exam, "the handler", &mut weighed).await;
        assert_eq!((grams, meta.id.to_string().as_str(), meta.source.as_str()), want);
    }
    exam.ok("drain", running.drain()).await;
}

/// A message that is marked as an event is not accepted as plain data.
async fn a_broken_event_is_no_plain_data(exam: Exam) {
    async fn keep(State(seen): Seen<Message>, Raw(message): Raw) {
        let _ = seen.send((*message).clone());
    }
    let (seen, mut kept) = channel();
    let service = Service::new("archive").bus(bus(&exam, Settings::default()));
    let service = service.on_subject("orders.>", keep.plain()).with_state(seen);
    let running = exam.ok("the service", service.start()).await;
    exam.publish(plain("orders.weighed.v1", "application/cloudevents+json", "{\"grams\":1}")).await;
    let sent = on("orders.weighed.v1", "fine");
    exam.publish(sent.clone()).await;
    assert_eq!(told(&exam, "the message behind it", &mut kept).await, sent);
    assert_eq!(dead(&exam).await.reason, Reason::Undecodable);
    exam.ok("drain", running.drain()).await;
}
