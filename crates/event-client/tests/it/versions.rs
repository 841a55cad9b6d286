//! Versions of an event, and payloads that are not what they should be.

use std::sync::{Arc, Mutex};

use event_client::delivery::Reason;
use event_client::event::JsonSchema;
use event_client::message::Message;
use event_client::service::{Msg, Service, State};
use event_client::subject::Subject;
use event_client::testing::TestBus;
use event_client::{ErrorKind, Event};
use serde::{Deserialize, Serialize};

use crate::events::{OrderPlaced, placed};

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "invoices.sent", version = 1)]
struct SentV1 {
    euros: i64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "invoices.sent", version = 2, upcast_from = SentV1)]
struct SentV2 {
    cents: i64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[event(name = "invoices.sent", version = 3, upcast_from = SentV2)]
struct Sent {
    cents: i64,
    currency: String,
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "invoices.sent", version = 3, upcast_from = SentV1)]
struct Gap {
    cents: i64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "invoices.sent", version = 2)]
struct NoPast {
    cents: i64,
}

impl From<SentV1> for SentV2 {
    fn from(v1: SentV1) -> Self {
        Self { cents: v1.euros * 100 }
    }
}

impl From<SentV2> for Sent {
    fn from(v2: SentV2) -> Self {
        Self { cents: v2.cents, currency: "EUR".into() }
    }
}

impl From<SentV1> for Gap {
    fn from(v1: SentV1) -> Self {
        Self { cents: v1.euros }
    }
}

#[tokio::test]
async fn every_older_version_arrives_as_the_newest() {
    type Seen = Arc<Mutex<Vec<Sent>>>;
    async fn see(State(seen): State<Seen>, Msg(sent): Msg<Sent>) {
        seen.lock().unwrap().push(sent);
    }
    let seen = Seen::default();
    let t = TestBus::start(Service::new("books").on(see).with_state(seen.clone())).await;
    t.publish(SentV1 { euros: 3 }).await;
    t.publish(SentV2 { cents: 250 }).await;
    t.publish(Sent { cents: 1, currency: "CHF".into() }).await.settled().await;
    let sent = |cents, currency: &str| Sent { cents, currency: currency.into() };
    assert_eq!(*seen.lock().unwrap(), [sent(300, "EUR"), sent(250, "EUR"), sent(1, "CHF")]);
}

#[tokio::test]
async fn a_gap_in_the_versions_stops_the_start() {
    async fn gap(Msg(_): Msg<Gap>) {}
    async fn no_past(Msg(_): Msg<NoPast>) {}
    let bus = event_client::Bus::connect("memory:version-gap").await.unwrap();
    let error = Service::new("books").bus(bus.clone()).on(gap).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`invoices.sent` v3") && error.to_string().contains("gap"), "{error}");
    let error = Service::new("books").bus(bus).on(no_past).start().await.unwrap_err();
    assert!(error.to_string().contains("since = 2"), "{error}");
}

/// What becomes of one message at a handler of `orders.placed`, with a good one behind it.
async fn fate(change: impl FnOnce(&mut Message)) -> (Reason, String) {
    async fn take(Msg(_): Msg<OrderPlaced>) {}
    let t = TestBus::start(Service::new("billing").on(take)).await;
    let mut message = t.bus().publish(placed(1)).into_message().unwrap();
    change(&mut message);
    t.bus().publish_message(message.clone()).await.unwrap();
    t.publish(placed(2)).await.settled().await;
    let counts = t.running().counts()["billing.orders.placed"];
    assert_eq!((counts.acked, counts.rejected, counts.retried), (1, 1, 0), "the good one is not harmed");
    let mut dead = t.dead_letters().await;
    assert_eq!(dead[0].message.payload, message.payload);
    let letter = dead.remove(0);
    (letter.reason, letter.error.to_string())
}

fn replace(from: &'static str, to: &'static str) -> impl FnOnce(&mut Message) {
    move |message| {
        let body = String::from_utf8(message.payload.to_vec()).unwrap();
        assert!(body.contains(from), "{body}");
        message.payload = body.replace(from, to).into();
    }
}

#[tokio::test]
async fn an_unknown_type_goes_to_the_dead_letters() {
    let (reason, error) = fate(replace("\"type\":\"orders.placed.v1\"", "\"type\":\"orders.lost.v1\"")).await;
    assert_eq!(reason, Reason::UnknownType);
    assert!(error.contains("`orders.lost.v1`") && error.contains("`orders.placed`"), "{error}");
    let (reason, error) =
        fate(replace("\"type\":\"orders.placed.v1\"", "\"type\":\"orders.placed.v9\"")).await;
    assert_eq!(reason, Reason::UnknownType);
    assert!(error.contains("v9") && error.contains("upcaster"), "{error}");
}

#[tokio::test]
async fn a_foreign_content_type_goes_to_the_dead_letters() {
    let (reason, error) = fate(|message| {
        message.content_type = "text/csv".into();
        for (name, value) in
            [("id", "1"), ("source", "/x"), ("type", "orders.placed.v1"), ("specversion", "1.0")]
        {
            message.headers.set(&format!("ce-{name}"), value).unwrap();
        }
    })
    .await;
    assert_eq!(reason, Reason::Undecodable);
    assert!(error.contains("text/csv") && error.contains("neither JSON nor MessagePack"), "{error}");
}

#[tokio::test]
async fn bytes_that_are_no_event_go_to_the_dead_letters() {
    for bytes in [&b"{"[..], b"\xff\xfe", b"", b"[]", b"{\"specversion\":\"1.0\"}"] {
        let (reason, error) = fate(|message| message.payload = bytes.to_vec().into()).await;
        assert_eq!(reason, Reason::Undecodable, "{bytes:?}: {error}");
    }
    let (reason, error) = fate(replace("\"cents\":100", "\"cents\":[]")).await;
    assert_eq!(reason, Reason::Undecodable);
    assert!(error.contains("OrderPlaced"), "{error}");
    let deep = "[".repeat(10_000);
    let (reason, _) = fate(move |message| {
        let body = String::from_utf8(message.payload.to_vec()).unwrap();
        message.payload = body.replace("100}", &format!("{deep}}}")).into();
    })
    .await;
    assert_eq!(reason, Reason::Undecodable);
}

#[tokio::test]
async fn a_subject_nobody_knows_concerns_nobody() {
    async fn take(Msg(_): Msg<OrderPlaced>) {}
    let t = TestBus::start(Service::new("billing").on(take)).await;
    let message = Message::new(Subject::new("orders.placed.v2").unwrap(), "text/plain", "?");
    t.bus().publish_message(message).await.unwrap();
    t.settled().await;
    assert!(t.handler("billing.orders.placed").attempts().is_empty());
}
