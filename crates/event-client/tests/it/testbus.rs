//! Tests `TestBus`: its records, its waiting, and its failure messages.

use std::time::Duration;

use event_client::service::OutcomeKind::{Ack, Reject, Retry};
use event_client::service::{Attempt, Emitter, Handler, Msg, Outcome, RetryAfter, RetryPolicy, Service};
use event_client::testing::TestBus;
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::events::{OrderPaid, OrderPlaced, placed};

async fn flaky(
    attempt: Attempt,
    out: Emitter,
    Msg(order): Msg<OrderPlaced>,
) -> event_client::Result<Outcome> {
    if attempt.number() < 3 {
        return Ok(Outcome::retry("the bank is down"));
    }
    out.emit(OrderPaid { order_id: order.order_id }).await?;
    Ok(Outcome::Ack)
}

#[tokio::test]
async fn records_outcomes_and_emitted_events_without_waiting() {
    let real = std::time::Instant::now();
    let t = TestBus::start(Service::new("billing").on(flaky.retry(RetryPolicy {
        base: Duration::from_secs(600),
        cap: Duration::from_secs(3600),
        jitter: false,
        attempts: 3,
    })))
    .await;
    let start = Instant::now();
    t.publish(placed(7)).await.until_idle().await;
    assert_eq!(t.handler("billing.orders.placed").outcomes(), [Retry, Retry, Ack]);
    assert_eq!(t.handler("billing.orders.placed").errors(), ["the bank is down"; 2]);
    assert_eq!(t.emitted::<OrderPaid>().once(), OrderPaid { order_id: 7 });
    t.emitted::<OrderPlaced>().never();
    assert!(t.dead_letters().await.is_empty());
    assert!(
        start.elapsed() >= Duration::from_secs(1800),
        "the paused clock went on by {:?}",
        start.elapsed()
    );
    assert!(real.elapsed() < Duration::from_secs(600), "and the test did not wait in real time");
}

#[tokio::test(start_paused = true)]
async fn an_already_paused_clock_is_fine_and_delayed_messages_are_waited_for() {
    let t = TestBus::start(Service::new("billing").on(flaky)).await;
    let start = Instant::now();
    t.bus().publish(placed(1)).delay(Duration::from_secs(3600)).await.unwrap();
    t.until_idle().await;
    assert_eq!(t.handler("billing.orders.placed").outcomes(), [Retry, Retry, Ack]);
    assert!(start.elapsed() >= Duration::from_secs(3599));
}

#[tokio::test]
async fn expired_messages_do_not_hold_it_up() {
    let t = TestBus::start(Service::new("billing").on(flaky)).await;
    t.bus()
        .publish(placed(1))
        .delay(Duration::from_secs(60))
        .expires_in(Duration::from_secs(30))
        .await
        .unwrap();
    t.until_idle().await;
    assert!(t.handler("billing.orders.placed").attempts().is_empty());
}

#[tokio::test]
async fn broadcast_handlers_are_waited_for() {
    async fn listen(Msg(order): Msg<OrderPlaced>) -> Result<(), String> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if order.order_id == 2 { Err("no".into()) } else { Ok(()) }
    }
    let t = TestBus::start(Service::new("board").on(listen.broadcast().concurrency(1))).await;
    for id in 1..=3 {
        t.publish(placed(id)).await;
    }
    t.until_idle().await;
    // A broadcast delivery is never retried, and its message is never stored as a dead letter.
    assert_eq!(t.handler("board.orders.placed").outcomes(), [Ack, Reject, Ack]);
    assert!(t.dead_letters().await.is_empty());
}

#[tokio::test]
async fn real_time_waits_for_signals() {
    async fn once(attempt: Attempt, Msg(_): Msg<OrderPlaced>) -> Result<(), RetryAfter> {
        match attempt.number() {
            1 => Err(RetryAfter::new(Duration::from_millis(5), "busy")),
            _ => Ok(()),
        }
    }
    let t = TestBus::real_time(Service::new("billing").on(once)).await;
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(t.handler("billing.orders.placed").outcomes(), [Retry, Ack]);
}

#[tokio::test]
async fn a_handler_that_never_ends_is_named() {
    async fn stuck(Msg(_): Msg<OrderPlaced>) {
        std::future::pending().await
    }
    let t = TestBus::start(Service::new("billing").on(stuck)).await;
    t.publish(placed(1)).await;
    let panic = std::panic::AssertUnwindSafe(t.until_idle()).catch_unwind().await.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("`billing.orders.placed` has 0 waiting") && text.contains("1 being handled"),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_expectations_say_what_happened_instead() {
    let t = TestBus::start(Service::new("billing").on(flaky)).await;
    t.publish(placed(1)).await.publish(placed(2)).await.until_idle().await;
    let text = |call: &dyn Fn()| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    };
    let once = text(&|| assert_eq!(t.emitted::<OrderPaid>().once().order_id, 0));
    for part in ["orders.paid.v1", "2 events", r#"{"order_id":1}"#, r#"{"order_id":2}"#] {
        assert!(once.contains(part), "{once}");
    }
    let unknown = text(&|| drop(t.handler("billing.orders")));
    assert!(unknown.contains("billing.orders.placed"), "{unknown}");
}
