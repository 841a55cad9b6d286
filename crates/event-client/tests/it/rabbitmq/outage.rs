//! Tests a broker that stops, restarts, or blocks publishers.

use std::time::Duration;

use event_client::ErrorKind;
use test_servers::{Generation, Rabbit};

use super::{group, message, open};

#[tokio::test]
async fn a_blocked_broker_says_why_and_goes_on() {
    let own = Rabbit::options().start().await.expect("a server");
    let bus = open(&format!("{}?publish_timeout=2s", own.url())).await.expect("the bus opens");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    bus.publish(message("orders.placed", "before")).await.expect("stored");
    let in_hand = subscription.next().await.expect("a delivery");
    own.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.0)").await.expect("the alarm is on");
    let error = loop {
        // The first publishes may succeed before the broker reports that it blocks.
        if let Err(error) = bus.publish(message("orders.placed", "blocked")).await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("low on memory"), "the broker's own words: {error}");
    let error = bus.admin().ping().await.expect_err("it takes no messages");
    assert!(error.to_string().contains("low on memory"), "{error}");
    // A message that was fetched can still be settled.
    in_hand.ack().await.expect("acknowledged");
    own.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.8)").await.expect("the alarm is off");
    bus.publish(message("orders.placed", "after")).await.expect("stored again");
    bus.admin().ping().await.expect("it is well");
}

#[tokio::test]
async fn a_subscription_waits_for_a_broker_that_is_starting() {
    for generation in Generation::ALL {
        let own = Rabbit::options().generation(generation).start().await.expect("a server");
        let bus = open(&format!("{}?publish_timeout=60s", own.url())).await.expect("the bus opens");
        drop(bus.subscribe(group("g", "orders.>")).await.expect("subscribed"));
        bus.publish(message("orders.placed", "kept")).await.expect("stored");
        own.kill().await.expect("killed");
        let (subscription, started) = tokio::join!(bus.subscribe(group("g", "orders.>")), own.start());
        started.expect("started");
        // The queue and its messages have survived the restart.
        let delivery = subscription.expect("subscribed").next().await.expect("a delivery");
        assert_eq!(&*delivery.message().payload, b"kept");
        delivery.ack().await.expect("acknowledged");
    }
}

#[tokio::test]
async fn a_subscription_does_not_wait_for_ever() {
    let own = Rabbit::options().start().await.expect("a server");
    let bus = open(&format!("{}?publish_timeout=1s", own.url())).await.expect("the bus opens");
    own.kill().await.expect("killed");
    let late = tokio::time::timeout(Duration::from_secs(60), bus.subscribe(group("g", "orders.>")));
    let error = late.await.expect("an answer").expect_err("no broker is running");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
