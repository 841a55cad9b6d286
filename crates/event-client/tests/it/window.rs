//! Tests publish windows and prefetched deliveries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_client::bus::Settings;
use event_client::service::{Handler, Msg, Service, State};
use event_client::subject::Pattern;
use event_client::subscription::Subscription;
use event_client::transport::{Receipt, Start, Subscribe};
use event_client::{Bus, ErrorKind, Event};
use tokio::sync::Semaphore;

use crate::events::{OrderPlaced, placed};

/// Opens a bus on a file, whose own window is smaller than the windows in the tests.
async fn bus() -> (tempfile::TempDir, Bus) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?max_payload=2k", folder.path().join("bus.db").display());
    let settings = Settings { window: 8, ..Settings::default() };
    (folder, Bus::connect_with(&url, settings).await.unwrap())
}

/// A subscription to all messages of the bus, from the oldest.
async fn all(bus: &Bus) -> Subscription {
    let mut spec = Subscribe::broadcast([Pattern::new("orders.>").unwrap()]);
    spec.start = Start::Earliest;
    bus.subscribe(spec).await.unwrap()
}

async fn next(subscription: &Subscription) -> u64 {
    let delivery = subscription.next().await.expect("it is open");
    let envelope = event_client::envelope::Envelope::read(delivery.message()).unwrap();
    OrderPlaced::decode(OrderPlaced::VERSION, &envelope).unwrap().order_id
}

#[track_caller]
fn in_order(receipts: &[Receipt]) {
    assert!(receipts.iter().all(|receipt| !receipt.duplicate));
    assert!(receipts.is_sorted_by(|a, b| a.position.unwrap() < b.position.unwrap()), "{receipts:?}");
}

/// Runs with a window that is smaller than that of the bus, and with a larger one.
#[tokio::test]
async fn a_window_answers_a_receipt_for_each_push_in_order() {
    for size in [1, 3, 100, usize::MAX] {
        let (_folder, bus) = bus().await;
        let mut window = bus.window(size);
        assert_eq!(window.flush().await.unwrap(), [], "nothing was pushed");
        for order in 0..100 {
            window.push(placed(order)).await.unwrap();
        }
        let receipts = window.flush().await.unwrap();
        assert_eq!(receipts.len(), 100);
        in_order(&receipts);
        assert_eq!(window.flush().await.unwrap(), [], "each receipt is answered once");
        let stored = all(&bus).await;
        for order in 0..100 {
            assert_eq!(next(&stored).await, order, "with a window of {size}");
        }
    }
}

/// Two windows on one bus share its capacity, and neither waits for the other for ever.
#[tokio::test]
async fn windows_that_share_a_bus_do_not_wait_for_each_other() {
    let (_folder, bus) = bus().await;
    let fill = async || {
        let mut window = bus.window(8);
        for order in 0..200 {
            window.push(placed(order)).await.unwrap();
        }
        window.flush().await.unwrap()
    };
    let (one, other) = tokio::join!(fill(), fill());
    in_order(&one);
    in_order(&other);
}

#[tokio::test]
async fn publish_all_stores_everything_in_order() {
    let (_folder, bus) = bus().await;
    let receipts = bus.publish_all((0..500).map(placed)).await.unwrap();
    assert_eq!(receipts.len(), 500);
    in_order(&receipts);
    let stored = all(&bus).await;
    for order in 0..500 {
        assert_eq!(next(&stored).await, order);
    }
    assert_eq!(bus.publish_all(Vec::<OrderPlaced>::new()).await.unwrap(), []);
}

#[derive(Event, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[event(name = "orders.noted", version = 1)]
struct OrderNoted {
    note: String,
}

#[tokio::test]
async fn publish_all_answers_the_first_failure_and_keeps_what_came_before_it() {
    let (_folder, bus) = bus().await;
    let notes = [10, 10, 4000, 10].map(|bytes| OrderNoted { note: "x".repeat(bytes) });
    let error = bus.publish_all(notes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    bus.publish(placed(7)).await.unwrap();
    let stored = all(&bus).await;
    for subject in ["orders.noted.v1", "orders.noted.v1", "orders.placed.v1"] {
        assert_eq!(stored.next().await.unwrap().message().subject.as_str(), subject);
    }
}

/// The member has one delivery in its handler and `prefetch` more in its buffer; the other messages stay
/// available to other members.
#[tokio::test]
async fn a_handler_takes_as_many_ahead_as_its_prefetch_says() {
    #[derive(Clone)]
    struct Gate(Arc<Semaphore>, Arc<AtomicUsize>);
    async fn slow(State(gate): State<Gate>, Msg(_): Msg<OrderPlaced>) {
        gate.1.fetch_add(1, Ordering::SeqCst);
        gate.0.acquire().await.unwrap().forget();
    }
    for prefetch in [0, 3, usize::MAX] {
        let (_folder, bus) = bus().await;
        let gate = Gate(Arc::new(Semaphore::new(0)), Arc::default());
        let handler = slow.concurrency(1).prefetch(prefetch);
        let service = Service::new("billing").bus(bus.clone()).on(handler).with_state(gate.clone());
        let service = service.start().await.unwrap();
        bus.publish_all((0..10).map(placed)).await.unwrap();
        let held = prefetch.saturating_add(1).min(10) as u64;
        loop {
            let status = bus.admin().groups().await.unwrap().remove(0);
            assert!(status.in_flight <= held, "{status:?}");
            if status.in_flight == held {
                assert_eq!(status.waiting, 10 - held, "{status:?}");
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(gate.1.load(Ordering::SeqCst) <= 1, "one at a time");
        gate.0.add_permits(10);
        while service.counts()["billing.orders.placed"].acked < 10 {
            tokio::task::yield_now().await;
        }
        service.drain().await.unwrap();
    }
}
