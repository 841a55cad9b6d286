//! Tests the service layer on the memory transport: the effect of each outcome, and how services start and
//! stop.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::ErrorKind;
use event_client::delivery::Reason;
use event_client::service::OutcomeKind::{Ack, Reject, Release, Retry};
use event_client::service::{
    Attempt, Emitter, Handler, Meta, Msg, Outcome, Permanent, RetryAfter, RetryPolicy, Service, State,
};
use event_client::testing::TestBus;
use tokio::time::Instant;

use crate::events::{OrderPaid, OrderPlaced, placed};

const GROUP: &str = "billing.orders.placed";

/// The orders that handlers received, in order.
type Seen = Arc<Mutex<Vec<u64>>>;

async fn see(State(seen): State<Seen>, Msg(order): Msg<OrderPlaced>) {
    seen.lock().unwrap().push(order.order_id);
}

#[tokio::test]
async fn outcomes_are_values() {
    #[derive(Clone, Default)]
    struct Calls(Arc<AtomicU32>);
    async fn all_four(State(calls): State<Calls>, attempt: Attempt, Msg(_): Msg<OrderPlaced>) -> Outcome {
        match (calls.0.fetch_add(1, Ordering::Relaxed), attempt.number()) {
            (0, 1) => Outcome::Release,
            (1, 1) => Outcome::retry_after(Duration::from_secs(7), "busy"),
            (2, 2) => Outcome::retry("again"),
            (3, 3) => Outcome::Ack,
            other => Outcome::reject(format_args!("a release must not count, a retry must: {other:?}")),
        }
    }
    let t = TestBus::start(Service::new("billing").on(all_four).with_state(Calls::default())).await;
    t.publish(placed(1)).await.until_idle().await;
    let handled = t.handler(GROUP);
    assert_eq!(handled.outcomes(), [Release, Retry, Retry, Ack], "{:?}", handled.errors());
    let waited = handled.attempts()[2].at - handled.attempts()[1].at;
    assert!((7..8).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test]
async fn errors_say_whether_to_try_again() {
    #[derive(Debug, thiserror::Error)]
    enum PayError {
        #[error("declined")]
        Declined(#[source] Permanent),
        #[error("limited")]
        Limited(#[source] RetryAfter),
    }
    async fn pay(attempt: Attempt, Msg(order): Msg<OrderPlaced>) -> Result<(), PayError> {
        match (order.order_id, attempt.number()) {
            (1, _) => Err(PayError::Declined(Permanent::new("code 51"))),
            (_, 1) => Err(PayError::Limited(RetryAfter::new(Duration::from_secs(30), "slow down"))),
            _ => Ok(()),
        }
    }
    let t = TestBus::start(Service::new("billing").on(pay)).await;
    t.publish(placed(1)).await.until_idle().await;
    let dead = t.dead_letters().await;
    assert_eq!((dead[0].reason, dead[0].error.as_str()), (Reason::Permanent, "declined: code 51"));
    assert_eq!(dead[0].attempts, 1);
    let start = Instant::now();
    t.publish(placed(2)).await.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Reject, Retry, Ack]);
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn a_panic_is_isolated_counted_and_tried_again() {
    async fn trip(attempt: Attempt, Msg(order): Msg<OrderPlaced>) {
        assert!(order.order_id != 1 || attempt.number() > 1, "tripped over {}", order.order_id);
    }
    let t = TestBus::start(Service::new("billing").on(trip.concurrency(1))).await;
    t.publish(placed(1)).await.publish(placed(2)).await.until_idle().await;
    let counts = t.running().counts()[GROUP];
    assert_eq!((counts.panicked, counts.retried, counts.acked, counts.rejected), (1, 1, 2, 0));
    assert_eq!(t.handler(GROUP).errors(), ["the handler panicked: tripped over 1"]);
}

#[tokio::test]
async fn spent_retries_make_a_dead_letter_with_the_original_bytes() {
    async fn fail(attempt: Attempt, Msg(_): Msg<OrderPlaced>) -> Result<(), String> {
        Err(format!("failure {} of 3, last: {}", attempt.number(), attempt.is_last()))
    }
    let t = TestBus::start(Service::new("billing").on(fail.retry(RetryPolicy::attempts(3)))).await;
    let mut sent = t.bus().publish(placed(1)).header("tenant", "acmé").into_message().unwrap();
    t.bus().publish_message(sent.clone()).await.unwrap();
    t.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Retry, Retry, Reject]);
    let dead = t.dead_letters().await.remove(0);
    sent.durability = dead.message.durability;
    assert_eq!(dead.message, sent, "subject, id, key, headers and bytes untouched");
    assert_eq!((dead.reason, dead.attempts, dead.group.as_str()), (Reason::Exhausted, 3, GROUP));
    assert_eq!(dead.error, "failure 3 of 3, last: true");
}

#[tokio::test]
async fn a_replay_reaches_the_failing_group_only_and_counts_from_one() {
    #[derive(Clone, Default)]
    struct Mended(Arc<AtomicU32>);
    async fn fragile(State(mended): State<Mended>, attempt: Attempt, Msg(_): Msg<OrderPlaced>) -> Outcome {
        match (mended.0.load(Ordering::Relaxed), attempt.number()) {
            (0, _) => Outcome::reject("broken"),
            (_, 1) => Outcome::Ack,
            _ => Outcome::reject("the attempts went on"),
        }
    }
    async fn sturdy(State(_): State<Mended>, Msg(_): Msg<OrderPlaced>) {}
    let mended = Mended::default();
    let service = Service::new("billing").on(fragile).on(sturdy.group("billing.sturdy"));
    let t = TestBus::start(service.with_state(mended.clone())).await;
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(t.dead_letters().await.len(), 1);
    mended.0.store(1, Ordering::Relaxed);
    assert_eq!(t.replay_dead_letters().await, 1);
    t.until_idle().await;
    assert!(t.dead_letters().await.is_empty());
    assert_eq!(t.handler(GROUP).outcomes(), [Reject, Ack]);
    assert_eq!(t.handler("billing.sturdy").outcomes(), [Ack]);
}

#[tokio::test]
async fn two_handlers_of_one_event_are_groups_of_their_own() {
    async fn fails(Msg(_): Msg<OrderPlaced>) -> Result<(), String> {
        Err("no".into())
    }
    async fn works(Msg(_): Msg<OrderPlaced>) {}
    let service = Service::new("billing").on(fails.retry(RetryPolicy::attempts(2))).on(works.group("audit"));
    let t = TestBus::start(service).await;
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Retry, Reject]);
    assert_eq!(t.handler("audit").outcomes(), [Ack]);
}

#[tokio::test]
async fn two_handlers_in_one_group_do_not_start() {
    async fn one(Msg(_): Msg<OrderPlaced>) {}
    async fn two(Msg(_): Msg<OrderPlaced>) {}
    let bus = event_client::Bus::connect("memory:duplicate-group").await.unwrap();
    let error = Service::new("billing").bus(bus).on(one).on(two).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains(GROUP) && error.to_string().contains(".group("), "{error}");
    let error = Service::new("billing").on(one).start().await.unwrap_err();
    assert!(error.to_string().contains(".bus(bus)"), "{error}");
}

#[tokio::test]
async fn a_keyed_handler_keeps_the_order_of_each_key_through_failures() {
    async fn step(State(seen): State<Seen>, attempt: Attempt, Msg(order): Msg<OrderPlaced>) -> Outcome {
        if order.cents % 5 == 0 && attempt.number() < 3 {
            return Outcome::retry("not yet");
        }
        seen.lock().unwrap().push(order.cents as u64);
        Outcome::Ack
    }
    let seen = Seen::default();
    let service = Service::new("billing").on(step.concurrency(8).keyed()).with_state(seen.clone());
    let t = TestBus::start(service).await;
    for n in 0..60_i64 {
        t.publish(OrderPlaced { order_id: n as u64 % 6, cents: n }).await;
    }
    t.until_idle().await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 60);
    assert!(!seen.is_sorted(), "other keys went on while one waited");
    for key in 0..6 {
        assert!(seen.iter().filter(|n| **n % 6 == key).is_sorted(), "key {key}: {seen:?}");
    }
}

#[tokio::test]
async fn emitted_events_carry_their_cause_and_keep_their_ids_over_attempts() {
    type Metas = Arc<Mutex<Vec<Meta>>>;
    async fn charge(
        State(_): State<Metas>,
        attempt: Attempt,
        out: Emitter,
        Msg(order): Msg<OrderPlaced>,
    ) -> event_client::Result<Outcome> {
        out.emit(OrderPaid { order_id: order.order_id }).await?;
        out.emit(OrderPaid { order_id: order.order_id + 1 }).await?;
        Ok(if attempt.number() == 1 { Outcome::retry("after the emits") } else { Outcome::Ack })
    }
    async fn thank(State(metas): State<Metas>, meta: Meta, Msg(_): Msg<OrderPaid>) {
        metas.lock().unwrap().push(meta);
    }
    let metas = Metas::default();
    let service = Service::new("billing").on(charge).on(thank).with_state(metas.clone());
    let t = TestBus::start(service).await;
    let sent = t.bus().publish(placed(1)).into_message().unwrap();
    let origin = event_client::envelope::Envelope::read(&sent).unwrap().meta;
    t.bus().publish_message(sent.clone()).await.unwrap();
    t.until_idle().await;
    let emitted = t.emitted::<OrderPaid>();
    let ids: Vec<_> = emitted.metas().iter().map(|meta| meta.id.clone()).collect();
    assert_eq!(ids.len(), 4);
    assert_eq!(ids[..2], ids[2..], "the second attempt repeats both ids in their order");
    assert_ne!(ids[0], ids[1]);
    for meta in metas.lock().unwrap().iter() {
        assert_eq!(meta.causationid.as_ref(), Some(&sent.id));
        assert_eq!(meta.correlationid, origin.correlationid);
        let (trace, from) = (meta.traceparent.unwrap(), origin.traceparent.unwrap());
        assert_eq!(trace.trace_id, from.trace_id);
        assert_ne!(trace.span_id, from.span_id);
        assert_eq!(meta.source, "/billing");
    }
}

#[tokio::test]
async fn every_process_sees_a_broadcast() {
    async fn listen(State(seen): State<Seen>, Msg(order): Msg<OrderPlaced>) {
        seen.lock().unwrap().push(order.order_id);
    }
    let (one, two) = (Seen::default(), Seen::default());
    let t = TestBus::start(Service::new("board").on(listen.broadcast()).with_state(one.clone())).await;
    let other = Service::new("board").on(listen.broadcast()).with_state(two.clone());
    let other = other.bus(t.bus().clone()).start().await.unwrap();
    t.publish(placed(1)).await.publish(placed(2)).await.until_idle().await;
    while other.counts()["board.orders.placed"].acked < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!((&*one.lock().unwrap(), &*two.lock().unwrap()), (&vec![1, 2], &vec![1, 2]));
}

#[tokio::test]
async fn draining_finishes_what_runs_and_hands_back_the_rest() {
    async fn slow(State(seen): State<Seen>, Msg(order): Msg<OrderPlaced>) {
        tokio::time::sleep(Duration::from_secs(10)).await;
        seen.lock().unwrap().push(order.order_id);
    }
    let seen = Seen::default();
    let service = || Service::new("billing").on(slow.concurrency(1).keyed()).with_state(seen.clone());
    let mut t = TestBus::start(service()).await;
    for _ in 0..3 {
        t.publish(placed(7)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    t.stop().await.unwrap();
    assert_eq!(t.handler(GROUP).outcomes(), [Ack]);
    let left = t.bus().admin().groups().await.unwrap().remove(0);
    assert_eq!((left.waiting, left.in_flight), (2, 0));
    t.restart(service()).await.unwrap();
    t.until_idle().await;
    assert_eq!(seen.lock().unwrap().len(), 3, "nothing twice, nothing lost");
}

#[tokio::test]
async fn draining_gives_up_at_its_bound_and_names_what_it_left() {
    async fn stuck(State(seen): State<Seen>, Msg(order): Msg<OrderPlaced>) {
        if seen.lock().unwrap().is_empty() {
            seen.lock().unwrap().push(order.order_id);
            std::future::pending().await
        }
    }
    let seen = Seen::default();
    let service = || {
        let service = Service::new("billing").on(stuck).drain_within(Duration::from_secs(3));
        service.with_state(seen.clone())
    };
    let mut t = TestBus::start(service()).await;
    t.publish(placed(7)).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let start = Instant::now();
    let error = t.stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("billing.orders.placed (1)"), "{error}");
    assert_eq!(start.elapsed().as_secs(), 3);
    t.restart(service()).await.unwrap();
    t.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Ack], "it was delivered again");
}

#[tokio::test]
async fn a_group_without_members_keeps_what_comes_meanwhile() {
    let seen = Seen::default();
    let service = || Service::new("billing").on(see).with_state(seen.clone());
    let mut t = TestBus::start(service()).await;
    t.publish(placed(1)).await.until_idle().await;
    t.stop().await.unwrap();
    t.publish(placed(2)).await.publish(placed(3)).await;
    t.restart(service()).await.unwrap();
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
}
