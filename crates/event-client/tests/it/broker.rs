//! Helpers that the tests of all brokers share: opening a bus by its URL, messages, groups, and common
//! checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use event_client::bus::{Bus, Settings};
use event_client::delivery::{Reason, Rejection};
use event_client::envelope::Meta;
use event_client::message::Message;
use event_client::service::{self, Attempt, Handler, Msg, Outcome, RetryPolicy, Running, Service, State};
use event_client::subject::{Group, Pattern, Subject};
use event_client::subscription::{Health, Subscription};
use event_client::transport::{
    self, Action, Change, DeadLetterFilter, Frame, Serve, Subscribe, Topology, Transport,
};
use event_client::{ErrorKind, Result};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::events::OrderPlaced;

pub(crate) async fn open(url: &str) -> Result<Arc<dyn Transport>> {
    transport::open(url.parse()?).await
}

/// Checks that opening the URL is refused with `kind`, and that the error's text contains `word`.
pub(crate) async fn refused(url: &str, kind: ErrorKind, word: &str) {
    let error = open(url).await.expect_err("it should be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error}");
}

pub(crate) fn message(subject: &str, text: &str) -> Message {
    Message::new(Subject::new(subject).expect("a subject"), "text/plain", text.to_owned())
}

/// A group with room for eight unsettled deliveries.
pub(crate) fn group(name: &str, pattern: &str) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("a group"), [Pattern::new(pattern).expect("a pattern")]);
    spec.max_in_flight = 8;
    spec
}

/// A record from a handler of plain data: the idempotency key, the attributes, the event.
pub(crate) type Taken = (String, Meta, OrderPlaced);

/// Starts a service that takes plain data: it releases the first delivery, retries the second, and
/// acknowledges the later ones.
pub(crate) async fn plain_service(bus: &Arc<dyn Transport>) -> (Running, UnboundedReceiver<Taken>) {
    #[derive(Clone)]
    struct Seen(UnboundedSender<Taken>, Arc<AtomicU32>);
    async fn take(
        State(Seen(seen, count)): State<Seen>,
        attempt: Attempt,
        meta: service::Meta,
        Msg(order): Msg<OrderPlaced>,
    ) -> Outcome {
        seen.send((attempt.idempotency_key().to_owned(), meta.0, order)).expect("the test listens");
        match count.fetch_add(1, Ordering::Relaxed) {
            0 => Outcome::Release,
            1 => Outcome::retry("once more"),
            _ => Outcome::Ack,
        }
    }
    let (seen, taken) = unbounded_channel();
    let quick = RetryPolicy::default().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let bus = Bus::with_transport(bus.clone(), Settings::default()).expect("the default durability");
    let service = Service::new("billing").bus(bus).on(take.plain().retry(quick).concurrency(1));
    (service.with_state(Seen(seen, Arc::default())).start().await.expect("started"), taken)
}

/// Checks that all deliveries of one message of a plain client are the same event, and returns it.
pub(crate) async fn same_event(taken: &mut UnboundedReceiver<Taken>, deliveries: usize) -> Taken {
    let first = taken.recv().await.expect("a delivery");
    for _ in 1..deliveries {
        assert_eq!(taken.recv().await.expect("another delivery"), first);
    }
    assert_eq!((first.1.source.as_str(), first.1.event_type.as_str()), ("unknown", "orders.placed.v1"));
    assert!(first.1.time.is_some(), "{:?}", first.1);
    first
}

/// Publishes a message of this subject, which must be the subscription's next delivery, and acknowledges it.
pub(crate) async fn passes(bus: &Arc<dyn Transport>, subscription: &Subscription, subject: &str, text: &str) {
    bus.publish(message(subject, text)).await.expect("confirmed");
    gets(subscription, text).await;
}

/// Checks that the next delivery has this text, and acknowledges it.
pub(crate) async fn gets(subscription: &Subscription, text: &str) {
    let delivery = subscription.next().await.expect("a delivery");
    assert_eq!(String::from_utf8_lossy(&delivery.message().payload), text);
    delivery.ack().await.expect("acknowledged");
}

/// Runs a service's operations over its bus: a group and a keyed group, a retry, a dead letter that is
/// replayed, a delayed message, a broadcast, a request, and `doctor`.
pub(crate) async fn does_everything(bus: &Arc<dyn Transport>) {
    let plain = bus.subscribe(group("plain", "orders.>")).await.expect("a group");
    let mut spec = group("keyed", "orders.>");
    spec.keyed = true;
    let keyed = bus.subscribe(spec).await.expect("a keyed group");
    let all = Subscribe::broadcast([Pattern::new("orders.>").expect("a pattern")]);
    let heard = bus.subscribe(all).await.expect("a broadcast");
    for subscription in [&plain, &keyed, &heard] {
        recovers(subscription).await;
    }
    let keyed_message = Message { key: Some("k".into()), ..message("orders.placed", "one") };
    bus.publish(keyed_message).await.expect("confirmed");
    for subscription in [&keyed, &heard] {
        gets(subscription, "one").await;
    }
    let first = plain.next().await.expect("a delivery");
    first.retry(Duration::from_millis(50), "once more").await.expect("retried");
    let second = plain.next().await.expect("the retry");
    assert_eq!(second.info().attempt, 2);
    second.reject(Rejection::new(Reason::Permanent, "no")).await.expect("rejected");
    let filter = DeadLetterFilter::default();
    assert_eq!(bus.admin().dead_letters(filter.clone()).await.expect("listed").len(), 1);
    assert_eq!(bus.admin().replay_dead_letters(filter).await.expect("replayed"), 1);
    gets(&plain, "one").await;
    if bus.capabilities().delayed {
        let due = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(50);
        let later = Message { deliver_at: Some(due), ..message("orders.placed", "later") };
        bus.publish(later).await.expect("confirmed");
        for subscription in [&plain, &keyed, &heard] {
            gets(subscription, "later").await;
        }
    }
    let serve = Serve::new("shop", vec![Subject::new("shop.quote").expect("a subject")], 1);
    let mut requests = bus.requests().serve(serve).await.expect("served");
    let call = async {
        let call = bus.requests().call(message("shop.quote", "?"), Duration::from_secs(30));
        call.await.expect("called").next().await.expect("a frame").expect("an answer").payload
    };
    let answer = async {
        let mut request = requests.recv().await.expect("a request");
        let headers = event_client::message::Headers::new();
        let content_type = "text/plain".into();
        let frame = Frame { headers, content_type, payload: "42".into(), last: true };
        request.responder.send(frame).await.expect("answered");
    };
    assert_eq!(tokio::join!(call, answer).0, "42");
    bus.admin().diagnose().await.expect("a diagnosis");
    assert_eq!(bus.admin().groups().await.expect("listed").len(), 2);
}

/// Checks that a user of the namespace `backbone` is denied access to another namespace.
pub(crate) async fn keeps_to_its_namespace(url: &str) {
    let error = match open(&format!("{url}?namespace=other")).await {
        Ok(bus) => bus.publish(message("orders.placed", "x")).await.expect_err("not its namespace"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
}

/// Returns the text between two others on an operator's page, as it is printed there.
pub(crate) fn printed<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = page.split_once(before).unwrap_or_else(|| panic!("the page lacks {before:?}"));
    rest.split_once(after).map_or(rest, |(text, _)| text).trim()
}

/// Waits until a subscription's health reports a problem whose text contains `word`.
pub(crate) async fn suffers(subscription: &Subscription, word: &str) {
    let mut health = subscription.health();
    let told = |health: &Health| matches!(health, Health::Rebuilding(why) if why.contains(word));
    health.wait_for(told).await.expect("not ended");
}

/// Waits until a subscription's health is live.
pub(crate) async fn recovers(subscription: &Subscription) {
    subscription.health().wait_for(|health| *health == Health::Live).await.expect("not ended");
}

/// Returns the changes that a plan lists for this subscription.
pub(crate) async fn planned(bus: &Arc<dyn Transport>, spec: &Subscribe) -> Vec<Change> {
    let mut topology = Topology::default();
    topology.add(spec);
    bus.admin().plan(topology).await.expect("a plan")
}

/// Checks that the plan names this object, that `apply` makes the change, and that nothing is planned
/// afterwards.
pub(crate) async fn is_planned_and_applied(bus: &Arc<dyn Transport>, spec: &Subscribe, object: &str) {
    let changes = planned(bus, spec).await;
    assert!(changes.iter().any(|change| change.object.contains(object)), "{changes:?}");
    assert!(changes.iter().all(|change| change.action != Action::Blocked), "{changes:?}");
    let mut topology = Topology::default();
    topology.add(spec);
    assert_eq!(bus.admin().apply(topology).await.expect("applied"), changes);
    assert_eq!(planned(bus, spec).await, []);
}
