//! Cases for events: a published event is delivered as the same event, and an event that no reader accepts is
//! refused.

use event_client::bus::Settings;
use event_client::codec::Codec;
use event_client::delivery::Reason;
use event_client::envelope::{Envelope, Meta, Mode};
use event_client::event::JsonSchema;
use event_client::message::{Message, MessageId};
use event_client::service::{Attempt, Emitter, Handler, Msg, Service, State};
use event_client::transport::{DeadLetter, DeadLetterFilter};
use event_client::{Bus, ErrorKind, Event};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, on};

cases! {
    events_of_every_mode_and_encoding_come_back;
    a_header_is_kept_or_refused_by_name;
    what_no_reader_takes_is_refused;
    an_event_that_expires_on_the_last_day_is_delivered;
    the_same_id_of_two_sources_is_two_events;
    a_trace_state_is_passed_on;
    plain_data_without_an_envelope_is_a_dead_letter;
}

#[derive(Event, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[event(name = "orders.weighed", version = 1)]
pub(crate) struct Weighed {
    pub(crate) grams: f64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[event(name = "orders.shipped", version = 1)]
struct Shipped {}

pub(crate) fn bus(exam: &Exam, settings: Settings) -> Bus {
    Bus::with_transport(exam.bus().clone(), settings).expect("the default durability")
}

/// A channel on which handlers report what they received.
pub(crate) fn channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
    unbounded_channel()
}

pub(crate) async fn told<T>(exam: &Exam, what: &str, seen: &mut UnboundedReceiver<T>) -> T {
    exam.waits_for(what);
    seen.recv().await.expect("the handler has not been dropped")
}

/// Waits for a dead letter.
pub(crate) async fn dead(exam: &Exam) -> DeadLetter {
    loop {
        let letters = exam.admin().dead_letters(DeadLetterFilter::default());
        if let Some(letter) = exam.ok("the dead letters", letters).await.pop() {
            return letter;
        }
        exam.waits_for("a dead letter");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Covers structured and binary mode, JSON and MessagePack, with text that headers cannot carry unencoded.
async fn events_of_every_mode_and_encoding_come_back(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for mode in [Mode::Structured, Mode::Binary] {
        for codec in [Codec::Json, Codec::MsgPack] {
            let bus = bus(
                &exam,
                Settings { source: "/exam/größe 100%".into(), mode, codec, ..Settings::default() },
            );
            let event = Weighed { grams: 0.1 + 0.2 };
            let publish = bus.publish(event.clone()).id("order/17:α \"%41\"").key("Ключ 1%");
            let sent = publish.entity("scale 7").header("tenant", "größe").into_message().expect("a message");
            exam.ok("publish", bus.publish_message(sent.clone())).await;
            let delivery = exam.next(&subscription).await;
            let got = delivery.message();
            assert_eq!((&got.id, &got.key, &got.payload), (&sent.id, &sent.key, &sent.payload), "{mode:?}");
            assert_eq!(got.headers, sent.headers, "{mode:?} {codec:?}");
            let (was, is) = (Envelope::read(&sent).expect("read"), Envelope::read(got).expect("read"));
            assert_eq!(is.meta, was.meta, "{mode:?} {codec:?}");
            assert_eq!(is.decode::<Weighed>().expect("decoded"), event);
            exam.ack(delivery).await;
        }
    }
}

/// Names that a broker, a layout or an envelope uses: a header with such a name is kept or refused, never
/// dropped without an error, and the same holds for copies.
async fn a_header_is_kept_or_refused_by_name(exam: Exam) {
    const NAMES: &[&str] = &[
        "authorization",
        "bcc",
        "bus-header-x",
        "bus-subject",
        "cc",
        "ce-expirytime",
        "ce-id",
        "ce-partitionkey",
        "ce-specversion",
        "ce-tenant",
        "ce-type",
        "cloudevents_id",
        "cloudevents_type",
        "content-type",
        "correlation-id",
        "data",
        "delivery-mode",
        "description",
        "expiration",
        "headers",
        "host",
        "id",
        "key",
        "message-id",
        "nats-expected-stream",
        "nats-msg-id",
        "nats-ttl",
        "payload",
        "priority",
        "reply-to",
        "status",
        "subject",
        "timestamp",
        "traceparent",
        "tracestate",
        "type",
        "user-id",
        "x-acquired-count",
        "x-death",
        "x-delay",
        "x-delivery-count",
        "x-delivery-limit",
        "x-exception-message",
        "x-expires",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-last-death-reason",
        "x-match",
        "x-message-ttl",
        "x-opt-rabbitmq-received-time",
        "x-routing-key",
        "x-stream-offset",
    ];
    let subscription = exam.subscribe(group("g", 1)).await;
    for name in NAMES {
        let mut sent = message("x");
        if let Err(error) = sent.headers.set(name, "5") {
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{name}");
            assert!(error.to_string().contains(name), "{name}: {error}");
            continue;
        }
        exam.waits_for(format!("the confirmation of a message with `{name}`"));
        if let Err(error) = exam.bus().publish(sent.clone()).await {
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{name}: {error}");
            assert!(error.to_string().contains(name), "{name}: {error}");
            continue;
        }
        let delivery = exam.next_of(&subscription, &format!("the message with `{name}`")).await;
        assert_eq!((&**delivery.message(), delivery.info().attempt), (&sent, 1), "{name}");
        exam.ok("retry", delivery.retry(std::time::Duration::ZERO, "again")).await;
        let delivery = exam.next_of(&subscription, &format!("`{name}` again")).await;
        assert_eq!((&**delivery.message(), delivery.info().attempt), (&sent, 2), "{name}");
        exam.ack(delivery).await;
    }
}

/// An event that would become a dead letter in every group is refused, with the reason.
async fn what_no_reader_takes_is_refused(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for mode in [Mode::Structured, Mode::Binary] {
        let ours = bus(&exam, Settings { mode, ..Settings::default() });
        let fine = Weighed { grams: 1.0 };
        for grams in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error =
                exam.refused(ErrorKind::Encode, grams, ours.publish(Weighed { grams }).into_future()).await;
            assert!(error.to_string().contains("grams"), "{error}");
        }
        let nameless = ours.publish(fine.clone()).id("").into_future();
        exam.refused(ErrorKind::Encode, "an empty id", nameless).await;
        let about = ours.publish(fine.clone()).entity("").into_future();
        exam.refused(ErrorKind::Encode, "an empty subject", about).await;
        let attribute = ours.publish(fine.clone()).header("ce-source", "/other").into_future();
        exam.refused(ErrorKind::InvalidName, "an attribute as a header", attribute).await;
        let sourceless = bus(&exam, Settings { source: "".into(), mode, ..Settings::default() });
        exam.refused(ErrorKind::Encode, "an empty source", sourceless.publish(fine).into_future()).await;
    }
    let mut nameless = message("x");
    nameless.id = MessageId::from("");
    exam.refused(ErrorKind::InvalidName, "a message without an id", exam.bus().publish(nameless)).await;
    let mut broken = message("x");
    broken.content_type = "text/plain\r\nother: x".into();
    exam.refused(ErrorKind::InvalidName, "a content type of two lines", exam.bus().publish(broken)).await;
    exam.publish(message("fine")).await;
    assert_eq!(exam.next(&subscription).await.message().payload, "fine");
}

/// Other libraries' calendars end a little later than this library's.
async fn an_event_that_expires_on_the_last_day_is_delivered(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = on("orders.weighed.v1", "{\"grams\":1.0}");
    sent.content_type = "application/json".into();
    sent.id = "A-1".into();
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", "A-1"),
        ("source", "/others"),
        ("type", "orders.weighed.v1"),
        ("time", "2026-01-01T00:00:00.1234567891Z"),
        ("expirytime", "9999-12-31T23:59:59Z"),
    ] {
        sent.headers.set(&format!("ce-{name}"), value).expect("a valid header");
    }
    exam.publish(sent).await;
    let delivery = exam.next(&subscription).await;
    let meta = Envelope::read(delivery.message()).expect("an event").meta;
    assert_eq!(meta.expirytime, Some(jiff::Timestamp::MAX));
    assert_eq!(meta.time.map(|time| time.to_string()).as_deref(), Some("2026-01-01T00:00:00.123456789Z"));
    exam.ack(delivery).await;
}

/// An event's identity is its source and its id together.
async fn the_same_id_of_two_sources_is_two_events(exam: Exam) {
    async fn see(State(seen): State<UnboundedSender<String>>, attempt: Attempt, Msg(_): Msg<Weighed>) {
        let _ = seen.send(attempt.idempotency_key().to_owned());
    }
    let (seen, mut keys) = channel();
    let service = Service::new("books").bus(bus(&exam, Settings::default())).on(see.concurrency(1));
    let running = exam.ok("the service", service.with_state(seen).start()).await;
    let mut all = std::collections::HashSet::new();
    for source in ["/a", "/b", "/a:b"] {
        let publish = bus(&exam, Settings { source: source.into(), ..Settings::default() });
        exam.ok("publish", publish.publish(Weighed { grams: 1.0 }).id("1").into_future()).await;
        all.insert(told(&exam, "the handler", &mut keys).await);
    }
    assert_eq!(all.len(), 3, "{all:?}");
    exam.ok("drain", running.drain()).await;
}

/// The trace state is passed on from an event to all events that it causes.
async fn a_trace_state_is_passed_on(exam: Exam) {
    async fn ship(out: Emitter, Msg(_): Msg<Weighed>) -> event_client::Result<()> {
        out.emit(Shipped {}).await.map(drop)
    }
    async fn see(
        State(seen): State<UnboundedSender<Meta>>,
        meta: event_client::service::Meta,
        Msg(_): Msg<Shipped>,
    ) {
        let _ = seen.send(meta.0);
    }
    for mode in [Mode::Structured, Mode::Binary] {
        let (seen, mut metas) = channel();
        let bus = bus(&exam, Settings { mode, ..Settings::default() });
        let name = format!("books-{mode:?}").to_lowercase();
        let service = Service::new(name).bus(bus.clone()).on(ship).on(see).with_state(seen);
        let running = exam.ok("the service", service.start()).await;
        let mut meta = Meta::new(MessageId::now(), "/others", "orders.weighed.v1");
        meta.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
        meta.tracestate = Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7".into());
        let data = Weighed { grams: 1.0 };
        let (content_type, headers, payload) =
            event_client::envelope::write(&mut meta, &data, Codec::Json, mode).expect("written");
        let mut sent = Message::new(crate::message::subject("orders.weighed.v1"), content_type, payload);
        (sent.id, sent.headers) = (meta.id.clone(), headers);
        exam.ok("publish", bus.publish_message(sent)).await;
        let caused = told(&exam, "the emitted event", &mut metas).await;
        assert_eq!(caused.tracestate, meta.tracestate, "{mode:?}");
        let trace = |meta: &Meta| meta.traceparent.map(|trace| trace.trace_id);
        assert_eq!(trace(&caused), trace(&meta), "{mode:?}");
        exam.ok("drain", running.drain()).await;
        for group in running_groups(mode) {
            exam.ok("delete", exam.admin().delete_group(crate::message::group_name(&group))).await;
        }
    }
}

fn running_groups(mode: Mode) -> [String; 2] {
    let name = format!("books-{mode:?}").to_lowercase();
    [format!("{name}.orders.weighed"), format!("{name}.orders.shipped")]
}

/// The error of a handler of events names the setting that accepts plain data.
async fn plain_data_without_an_envelope_is_a_dead_letter(exam: Exam) {
    async fn weigh(Msg(_): Msg<Weighed>) {}
    let service = Service::<()>::new("books").bus(bus(&exam, Settings::default())).on(weigh);
    let running = exam.ok("the service", service.with_state(()).start()).await;
    let mut sent = on("orders.weighed.v1", "{\"grams\":1.0}");
    sent.content_type = "application/json".into();
    exam.publish(sent).await;
    let letter = dead(&exam).await;
    assert_eq!(letter.reason, Reason::Undecodable);
    assert!(letter.error.contains("`.plain()`"), "{}", letter.error);
    exam.ok("drain", running.drain()).await;
}
