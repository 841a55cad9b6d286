//! Tests services when the library's tasks die: the service continues, or reports that it cannot.

use std::sync::Arc;

use event_client::service::Msg;
use event_client::service::{Handler, Service, State};
use event_client::testing::kill;
use event_client::{Bus, Error, ErrorKind};
use tokio::sync::{Semaphore, mpsc};

use crate::events::OrderPlaced;

type Seen = mpsc::UnboundedSender<u64>;

async fn note(State(seen): State<Seen>, Msg(order): Msg<OrderPlaced>) -> Result<(), Error> {
    let _ = seen.send(order.order_id);
    Ok(())
}

#[tokio::test]
async fn a_service_opens_its_subscription_again_and_its_workers_go_on() {
    let bus = Bus::connect("memory:supervision").await.expect("a bus");
    let (seen, mut told) = mpsc::unbounded_channel();
    let service = Service::new("billing").bus(bus.clone()).on(note.concurrency(1)).with_state(seen);
    let running = service.start().await.expect("started");
    for (n, task) in (0..).zip(["memory member", "service worker", "memory member"]) {
        bus.publish(OrderPlaced { order_id: n, cents: 1 }).await.expect("stored");
        assert_eq!(told.recv().await, Some(n));
        assert_eq!(kill(task), 1, "{task}");
    }
    bus.publish(OrderPlaced { order_id: 9, cents: 1 }).await.expect("stored");
    assert_eq!(told.recv().await, Some(9));
    assert!(running.is_ready(), "{:?}", running.health());
    running.drain().await.expect("drained");
}

#[tokio::test]
async fn a_service_ends_with_an_error_when_its_bus_cannot_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let bus =
        Bus::connect(&format!("sqlite:{}", folder.path().join("bus.db").display())).await.expect("a bus");
    let (seen, mut told) = mpsc::unbounded_channel();
    let service = Service::new("billing").bus(bus.clone()).on(note).with_state(seen);
    let running = tokio::spawn(service.run_until(std::future::pending()));
    // Published until the group exists.
    while told.try_recv().is_err() {
        bus.publish(OrderPlaced { order_id: 1, cents: 1 }).await.expect("stored");
        tokio::task::yield_now().await;
    }
    assert_eq!(kill("sqlite writer"), 1);
    let error = running.await.expect("no panic").expect_err("it cannot go on");
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
}

#[tokio::test]
async fn draining_says_that_settlements_were_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let bus =
        Bus::connect(&format!("sqlite:{}", folder.path().join("bus.db").display())).await.expect("a bus");
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    type Gates = (Arc<Semaphore>, Arc<Semaphore>);
    async fn wait(State((begun, go)): State<Gates>, Msg(_): Msg<OrderPlaced>) -> Result<(), Error> {
        begun.add_permits(1);
        let _ = go.acquire().await;
        Ok(())
    }
    let service = Service::new("billing").bus(bus.clone()).on(wait).with_state((begun.clone(), go.clone()));
    let running = service.start().await.expect("started");
    bus.publish(OrderPlaced { order_id: 1, cents: 1 }).await.expect("stored");
    drop(begun.acquire().await);
    assert_eq!(kill("sqlite writer"), 1);
    // The dying task closes the bus before the handler is done.
    while bus.publish(OrderPlaced { order_id: 2, cents: 1 }).await.is_ok() {}
    go.add_permits(1);
    let error = running.drain().await.expect_err("the acknowledgement was lost");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("settlements=1"), "{error}");
}

/// The service's drain timeout may have any length.
#[tokio::test]
async fn a_drain_of_any_length_ends() {
    for bound in [std::time::Duration::ZERO, std::time::Duration::from_nanos(1), std::time::Duration::MAX] {
        let bus = Bus::connect("memory:supervision-drain").await.expect("a bus");
        let (seen, mut told) = mpsc::unbounded_channel();
        let service = Service::new("billing").bus(bus.clone()).drain_within(bound);
        let running = service.on(note.concurrency(2)).with_state(seen).start().await.expect("started");
        bus.publish(OrderPlaced { order_id: 1, cents: 1 }).await.expect("stored");
        assert_eq!(told.recv().await, Some(1));
        let drained = running.drain().await;
        // With no time, a drain may abandon even an idle worker.
        assert!(drained.is_ok() || bound < std::time::Duration::MAX, "{drained:?}");
    }
}
