//! Tests batch handlers: the size of the batches, and the settlement of each item.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::delivery::Reason;
use event_client::message::Message;
use event_client::service::OutcomeKind::{Ack, Reject, Retry};
use event_client::service::{Batch, BatchHandler, Handler, Outcome, RetryPolicy, Service, State};
use event_client::testing::TestBus;
use event_client::{Bus, Event};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::events::{OrderPaid, OrderPlaced, placed};

const GROUP: &str = "store.orders.placed";

/// The order ids of each batch, in the order in which batches were handled.
type Seen = Arc<Mutex<Vec<Vec<u64>>>>;

fn note(seen: &Seen, batch: &Batch<OrderPlaced>) {
    seen.lock().unwrap().push(batch.events().map(|order| order.order_id).collect());
}

async fn store(State(seen): State<Seen>, batch: Batch<OrderPlaced>) {
    note(&seen, &batch);
}

async fn publish(t: &TestBus, ids: impl IntoIterator<Item = u64>) {
    for id in ids {
        t.publish(placed(id)).await;
    }
}

fn sizes(seen: &Seen) -> Vec<usize> {
    seen.lock().unwrap().iter().map(Vec::len).collect()
}

#[tokio::test]
async fn a_full_batch_starts_at_once_and_a_part_of_one_after_the_wait() {
    let seen = Seen::default();
    let service = Service::new("store").on_batch(store, 4, Duration::from_secs(5)).with_state(seen.clone());
    let t = TestBus::start(service).await;
    let start = Instant::now();
    publish(&t, 0..10).await;
    t.until_idle().await;
    assert_eq!(sizes(&seen), [4, 4, 2]);
    assert_eq!(seen.lock().unwrap().concat(), (0..10).collect::<Vec<_>>(), "in the order of arrival");
    assert_eq!(t.handler(GROUP).outcomes(), [Ack; 10]);
    assert!((5..6).contains(&start.elapsed().as_secs()), "only the last batch waited: {:?}", start.elapsed());
}

#[tokio::test]
async fn no_more_batches_run_at_a_time_than_asked_for() {
    #[derive(Clone, Default)]
    struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);
    async fn slow(State(Gauge(gauge)): State<Gauge>, _batch: Batch<OrderPlaced>) {
        gauge.1.fetch_max(gauge.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        gauge.0.fetch_sub(1, Ordering::SeqCst);
    }
    let gauge = Gauge::default();
    let handler = slow.batch(2, Duration::from_millis(1)).concurrency(3);
    let t = TestBus::start(Service::new("store").on(handler).with_state(gauge.clone())).await;
    publish(&t, 0..40).await;
    t.until_idle().await;
    assert_eq!(gauge.0.1.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn each_item_is_settled_as_its_own_outcome_says() {
    async fn judge(batch: Batch<OrderPlaced>) -> Vec<Outcome> {
        let judge = |id: u64, last: bool| match id {
            1 => Outcome::reject("never"),
            2 if !last => Outcome::retry("not yet"),
            _ => Outcome::Ack,
        };
        batch.iter().map(|item| judge(item.event.order_id, item.attempt().is_last())).collect()
    }
    let handler = judge.batch(8, Duration::from_millis(10)).retry(RetryPolicy::attempts(3));
    let t = TestBus::start(Service::new("store").on(handler)).await;
    let mut ids = Vec::new();
    for id in 0..4 {
        let message = t.bus().publish(placed(id)).into_message().unwrap();
        ids.push(message.id.clone());
        t.bus().publish_message(message).await.unwrap();
    }
    t.until_idle().await;
    let handled = t.handler(GROUP);
    let outcomes: Vec<_> = ids.iter().map(|id| handled.of(id).outcomes()).collect();
    assert_eq!(outcomes, [vec![Ack], vec![Reject], vec![Retry, Retry, Ack], vec![Ack]]);
    let dead = t.dead_letters().await;
    assert_eq!((dead.len(), dead[0].reason, dead[0].error.as_str()), (1, Reason::Permanent, "never"));
}

#[tokio::test]
async fn an_error_is_every_items_error() {
    async fn fail(_batch: Batch<OrderPlaced>) -> Result<(), String> {
        Err("the disk is full".into())
    }
    let handler = fail.batch(3, Duration::from_millis(10)).retry(RetryPolicy::attempts(2));
    let t = TestBus::start(Service::new("store").on(handler)).await;
    publish(&t, 0..3).await;
    t.until_idle().await;
    let dead = t.dead_letters().await;
    assert_eq!(dead.len(), 3);
    assert!(dead.iter().all(|letter| letter.reason == Reason::Exhausted && letter.attempts == 2));
    assert_eq!(t.handler(GROUP).errors(), ["the disk is full"; 6]);
}

#[tokio::test]
async fn a_wrong_number_of_outcomes_is_an_error_and_nothing_is_taken_as_done() {
    async fn miscount(_batch: Batch<OrderPlaced>) -> Vec<Outcome> {
        vec![Outcome::Ack]
    }
    let handler = miscount.batch(3, Duration::from_millis(10)).retry(RetryPolicy::never());
    let t = TestBus::start(Service::new("store").on(handler)).await;
    publish(&t, 0..3).await;
    t.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Reject; 3]);
    assert_eq!(t.handler(GROUP).errors(), ["the batch handler answered 1 outcomes for 3 items"; 3]);
}

#[tokio::test]
async fn what_does_not_decode_is_rejected_alone() {
    let seen = Seen::default();
    let service =
        Service::new("store").on_batch(store, 10, Duration::from_millis(10)).with_state(seen.clone());
    let t = TestBus::start(service).await;
    publish(&t, [1]).await;
    let mut broken: Message = t.bus().publish(placed(2)).into_message().unwrap();
    broken.payload = String::from_utf8(broken.payload.to_vec()).unwrap().replace(":100", ":\"many\"").into();
    t.bus().publish_message(broken.clone()).await.unwrap();
    publish(&t, [3]).await;
    t.until_idle().await;
    assert_eq!(*seen.lock().unwrap(), [vec![1, 3]]);
    let dead = t.dead_letters().await;
    assert_eq!((dead.len(), dead[0].reason, &dead[0].message), (1, Reason::Undecodable, &broken));
}

#[tokio::test]
async fn a_panic_is_every_items_panic_and_the_next_batch_runs() {
    async fn trip(batch: Batch<OrderPlaced>) {
        assert!(batch.iter().all(|item| item.attempt().number() > 1), "tripped");
    }
    let t = TestBus::start(Service::new("store").on_batch(trip, 2, Duration::from_millis(10))).await;
    publish(&t, 0..2).await;
    t.until_idle().await;
    assert_eq!(t.running().counts()[GROUP].panicked, 2);
    assert_eq!(t.handler(GROUP).errors(), ["the handler panicked: tripped"; 2]);
    assert_eq!(t.handler(GROUP).outcomes(), [Retry, Retry, Ack, Ack]);
}

#[tokio::test]
async fn keyed_batches_hold_one_item_of_a_key_and_keep_its_order() {
    async fn flaky(State(seen): State<Seen>, batch: Batch<OrderPlaced>) -> Vec<Outcome> {
        let outcome = |cents: i64, attempt: u32| {
            // Every third item fails at first: the next item of the same key has to wait.
            if cents % 3 == 0 && attempt == 1 { Outcome::retry("once") } else { Outcome::Ack }
        };
        let outcomes: Vec<_> =
            batch.iter().map(|item| outcome(item.event.cents, item.attempt().number())).collect();
        let done = batch.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Ack);
        seen.lock().unwrap().push(done.map(|(item, _)| item.event.cents as u64).collect());
        let keys: std::collections::HashSet<_> = batch.events().map(Event::key).collect();
        assert_eq!(keys.len(), batch.len(), "one item of a key in a batch");
        outcomes
    }
    let seen = Seen::default();
    let handler = flaky.batch(8, Duration::from_millis(5)).keyed();
    let t = TestBus::start(Service::new("store").on(handler).with_state(seen.clone())).await;
    for n in 0..40_i64 {
        t.publish(OrderPlaced { order_id: n as u64 % 4, cents: n }).await;
    }
    t.until_idle().await;
    let order = seen.lock().unwrap().concat();
    assert_eq!(order.len(), 40);
    for key in 0..4 {
        let of_key: Vec<_> = order.iter().filter(|n| **n % 4 == key).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
    assert!(sizes(&seen).iter().any(|size| *size > 1), "keys go together: {:?}", sizes(&seen));
}

#[tokio::test]
async fn items_emit_with_their_own_cause_and_with_ids_that_last() {
    async fn pay(_bus: Bus, batch: Batch<OrderPlaced>) -> event_client::Result<Vec<Outcome>> {
        join_all(batch.iter().map(|item| async {
            item.emitter().emit(OrderPaid { order_id: item.event.order_id }).await?;
            Ok(if item.attempt().number() == 1 { Outcome::retry("again") } else { Outcome::Ack })
        }))
        .await
        .into_iter()
        .collect()
    }
    let t = TestBus::start(Service::new("store").on_batch(pay, 2, Duration::from_millis(1))).await;
    publish(&t, 0..2).await;
    t.until_idle().await;
    let emitted = t.emitted::<OrderPaid>();
    assert_eq!(emitted.len(), 4);
    for order_id in 0..2 {
        let metas: Vec<_> =
            emitted.iter().zip(emitted.metas()).filter(|(paid, _)| paid.order_id == order_id).collect();
        assert_eq!(metas[0].1.id, metas[1].1.id, "the second attempt repeats the id");
        assert_eq!(metas[0].1.causationid, metas[1].1.causationid);
    }
    let ids: std::collections::HashSet<_> = emitted.metas().iter().map(|meta| &meta.id).collect();
    assert_eq!(ids.len(), 2);
}

#[tokio::test]
async fn draining_does_not_sit_out_the_wait() {
    let seen = Seen::default();
    let service =
        Service::new("store").on_batch(store, 100, Duration::from_secs(3600)).with_state(seen.clone());
    let mut t = TestBus::start(service).await;
    publish(&t, 0..3).await;
    // The paused clock advances only when every worker waits: so each has taken its message.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let start = Instant::now();
    t.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(*seen.lock().unwrap(), [[0, 1, 2]]);
    assert_eq!(t.handler(GROUP).outcomes(), [Ack; 3]);
}
