//! Tests versions of an event, and invalid payloads.

mod deploy;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::delivery::Reason;
use event_client::event::JsonSchema;
use event_client::message::Message;
use event_client::service::{
    Attempt, Batch, BatchHandler, Dynamic, Handler, Msg, OutcomeKind, Raw, Service, State,
};
use event_client::subject::Subject;
use event_client::testing::TestBus;
use event_client::{ErrorKind, Event};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

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
    t.publish(Sent { cents: 1, currency: "CHF".into() }).await.until_idle().await;
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

/// Publishes one changed message to a handler of `orders.placed`, and a valid one after it; returns the
/// changed one's dead-letter reason and error.
async fn fate(change: impl FnOnce(&mut Message)) -> (Reason, String) {
    async fn take(Msg(_): Msg<OrderPlaced>) {}
    let t = TestBus::start(Service::new("billing").on(take)).await;
    let mut message = t.bus().publish(placed(1)).into_message().unwrap();
    change(&mut message);
    t.bus().publish_message(message.clone()).await.unwrap();
    t.publish(placed(2)).await.until_idle().await;
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
async fn an_unknown_type_goes_to_the_dead_letters_and_an_unknown_version_after_a_day() {
    let (reason, error) = fate(replace("\"type\":\"orders.placed.v1\"", "\"type\":\"orders.lost.v1\"")).await;
    assert_eq!(reason, Reason::UnknownType);
    assert!(error.contains("`orders.lost.v1`") && error.contains("`orders.placed`"), "{error}");
    let (reason, error) =
        fate(replace("\"type\":\"orders.placed.v1\"", "\"type\":\"orders.placed.v9\"")).await;
    assert_eq!(reason, Reason::UnknownVersion);
    assert!(error.contains("`orders.placed.v9`") && error.contains("reads v1"), "{error}");
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
    let message = Message::new(Subject::new("orders.placed.again").unwrap(), "text/plain", "?");
    t.bus().publish_message(message).await.unwrap();
    t.until_idle().await;
    assert!(t.handler("billing.orders.placed").attempts().is_empty());
}

/// The first service of a deployment: it knows versions 1 and 2.
async fn second(State(seen): State<Arc<Mutex<Vec<i64>>>>, Msg(sent): Msg<SentV2>) {
    seen.lock().unwrap().push(sent.cents);
}

/// The next service: it knows version 3 as well.
async fn third(State(seen): State<Arc<Mutex<Vec<i64>>>>, attempt: Attempt, Msg(sent): Msg<Sent>) {
    assert_eq!(attempt.number(), 1, "waiting counted as attempts");
    seen.lock().unwrap().push(sent.cents);
}

fn cents(cents: i64) -> Sent {
    Sent { cents, currency: "EUR".into() }
}

/// Waits until the handler has settled `count` deliveries.
async fn settlements(t: &TestBus, group: &str, count: usize) {
    while t.handler(group).attempts().len() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_newer_version_waits_for_a_member_that_knows_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut t = TestBus::start(Service::new("books").on(second.keyed()).with_state(seen.clone())).await;
    t.publish(cents(3)).await.publish(SentV2 { cents: 1 }).await.publish(SentV1 { euros: 2 }).await;
    settlements(&t, "books.invoices.sent", 20).await;
    assert_eq!(*seen.lock().unwrap(), [1, 200], "the versions that it knows are handled");
    let outcomes = t.handler("books.invoices.sent").outcomes();
    assert_eq!(outcomes.iter().filter(|kind| **kind == OutcomeKind::Release).count(), outcomes.len() - 2);
    let counts = t.running().counts()["books.invoices.sent"];
    assert_eq!((counts.acked, counts.retried, counts.rejected), (2, 0, 0));
    t.restart(Service::new("books").on(third.keyed()).with_state(seen.clone())).await.unwrap();
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [1, 200, 3]);
    assert!(t.dead_letters().await.is_empty());
}

#[tokio::test]
async fn after_a_day_a_version_that_nobody_knows_is_a_dead_letter() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut t = TestBus::start(Service::new("books").on(second).with_state(seen.clone())).await;
    let start = Instant::now();
    t.publish(cents(3)).await.until_idle().await;
    let day = Duration::from_secs(24 * 3600);
    assert!(start.elapsed() >= day && start.elapsed() < day * 2, "{:?}", start.elapsed());
    let deliveries = t.handler("books.invoices.sent").attempts().len();
    assert!(deliveries < 24 * 3600 / 30, "{deliveries} deliveries in a day are no backoff");
    let letter = t.dead_letters().await.remove(0);
    assert_eq!((letter.reason, letter.attempts), (Reason::UnknownVersion, 1));
    assert!(
        letter.error.contains("`invoices.sent.v3`") && letter.error.contains("v2 v1"),
        "{}",
        letter.error
    );
    t.restart(Service::new("books").on(third).with_state(seen.clone())).await.unwrap();
    assert_eq!(t.replay_dead_letters().await, 1);
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [3]);
}

#[tokio::test]
async fn an_older_version_that_is_read_no_more_waits_as_well() {
    #[derive(Event, Serialize, Deserialize, JsonSchema)]
    #[event(name = "invoices.sent", version = 2, since = 2)]
    struct Since2 {
        cents: i64,
    }
    async fn take(State(seen): State<Arc<Mutex<Vec<i64>>>>, Msg(sent): Msg<Since2>) {
        seen.lock().unwrap().push(sent.cents);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut t = TestBus::start(Service::new("books").on(take).with_state(seen.clone())).await;
    t.publish(SentV1 { euros: 3 }).await.publish(SentV2 { cents: 1 }).await;
    settlements(&t, "books.invoices.sent", 5).await;
    t.restart(Service::new("books").on(second).with_state(seen.clone())).await.unwrap();
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [1, 300]);
}

#[tokio::test]
async fn a_batch_has_only_versions_that_its_handler_knows() {
    async fn all(State(seen): State<Arc<Mutex<Vec<i64>>>>, batch: Batch<SentV2>) {
        seen.lock().unwrap().extend(batch.events().map(|sent| sent.cents));
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let batches = all.batch(10, Duration::from_secs(1)).await_version(Duration::from_secs(60));
    let t = TestBus::start(Service::new("books").on(batches).with_state(seen.clone())).await;
    t.publish(SentV1 { euros: 3 }).await.publish(cents(4)).await.publish(SentV2 { cents: 5 }).await;
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [300, 5]);
    assert_eq!(t.dead_letters().await[0].reason, Reason::UnknownVersion);
}

#[tokio::test]
async fn handlers_of_anything_take_every_version() {
    type Kinds = Arc<Mutex<Vec<String>>>;
    async fn dynamic(State(seen): State<Kinds>, event: Dynamic) {
        seen.lock().unwrap().push(format!("dynamic {}", event.kind));
    }
    async fn raw(State(seen): State<Kinds>, Raw(message): Raw) {
        seen.lock().unwrap().push(format!("raw {}", message.subject));
    }
    let seen = Kinds::default();
    let service = Service::new("audit")
        .on_subject("invoices.sent.*", dynamic.group("audit.dynamic"))
        .on_subject("invoices.sent.*", raw.group("audit.raw"));
    let t = TestBus::start(service.with_state(seen.clone())).await;
    t.publish(SentV1 { euros: 3 }).await.publish(cents(4)).await.until_idle().await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(
        seen,
        [
            "dynamic invoices.sent.v1",
            "dynamic invoices.sent.v3",
            "raw invoices.sent.v1",
            "raw invoices.sent.v3"
        ]
    );
}

#[tokio::test]
async fn a_typed_handler_on_a_pattern_hands_newer_versions_back_too() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let by_pattern = |t: bool| {
        let service = Service::new("books");
        let service = if t {
            service.on_subject("invoices.>", third.group("books"))
        } else {
            service.on_subject("invoices.>", second.group("books"))
        };
        service.with_state(seen.clone())
    };
    let mut t = TestBus::start(by_pattern(false)).await;
    t.publish(cents(3)).await;
    settlements(&t, "books", 3).await;
    t.restart(by_pattern(true)).await.unwrap();
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [3]);
}

#[tokio::test]
async fn a_broadcast_passes_over_what_it_does_not_know() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let t = TestBus::start(Service::new("books").on(second.broadcast()).with_state(seen.clone())).await;
    t.publish(cents(3)).await.publish(SentV2 { cents: 1 }).await.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [1]);
    let counts = t.running().counts()["books.invoices.sent"];
    assert_eq!((counts.acked, counts.released, counts.rejected), (1, 1, 0));
}

#[tokio::test]
async fn a_subject_that_only_looks_like_a_version_concerns_nobody() {
    async fn take(Msg(_): Msg<OrderPlaced>) {}
    let t = TestBus::start(Service::new("billing").on(take)).await;
    for subject in ["orders.placed.v01", "orders.placed.again", "orders.placed.v99999999999"] {
        let mut message = t.bus().publish(placed(1)).into_message().unwrap();
        let body = String::from_utf8(message.payload.to_vec()).unwrap();
        message.payload = body.replace("orders.placed.v1", subject).into();
        message.subject = Subject::new(subject).unwrap();
        t.bus().publish_message(message).await.unwrap();
    }
    t.publish(placed(2)).await.until_idle().await;
    assert!(t.dead_letters().await.is_empty());
    assert_eq!(t.running().counts()["billing.orders.placed"].acked, 1);
}
