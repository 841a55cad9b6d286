//! Tests that the conformance suite does not contain: the paused clock, a shared name, and the limits of memory.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::delivery::{Delivery, Reason, Rejection};
use crate::error::ErrorKind;
use crate::subject::{Group, Pattern, Subject};
use crate::{DeadLetterFilter, Start};

fn message(key: &str) -> Message {
    let mut message = Message::new(Subject::new("orders.placed.v1").unwrap(), "text/plain", key.to_owned());
    message.key = Some(key.into());
    message
}

fn spec(max_in_flight: usize) -> Subscribe {
    let mut spec = Subscribe::group(Group::new("g").unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.max_in_flight = max_in_flight;
    spec
}

fn bounded(max_messages: usize) -> MemoryTransport {
    MemoryTransport::private(MemoryConfig { max_messages, ..MemoryConfig::default() }).unwrap()
}

fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message().payload).unwrap()
}

#[tokio::test]
async fn a_name_is_one_bus_while_it_is_open() {
    let open = |url: &str| MemoryTransport::open(url.parse().unwrap());
    let (one, two) = (open("memory:shared-name").unwrap(), open("memory:shared-name").unwrap());
    let subscription = one.subscribe(spec(1)).await.unwrap();
    two.publish(message("a")).await.unwrap();
    assert_eq!(text(&subscription.next().await.unwrap()), "a");
    let error = open("memory:shared-name?max_messages=5").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    two.close().await.unwrap();
    one.publish(message("b")).await.unwrap();
    drop((one, two, subscription));
    // The feeding task drops the bus asynchronously; until then the name stays in use.
    while open("memory:shared-name?max_messages=5").is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_drives_delay_retry_and_lease() {
    let bus = bounded(100);
    let subscription = bus.subscribe(spec(4)).await.unwrap();
    let start = tokio::time::Instant::now();
    let mut late = message("late");
    late.deliver_at = Some(Timestamp::now() + SignedDuration::from_hours(1));
    bus.publish(late).await.unwrap();
    let delivery = subscription.next().await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(3590), "{:?}", start.elapsed());

    delivery.retry(Duration::from_secs(600), "busy").await.unwrap();
    let delivery = subscription.next().await.unwrap();
    assert_eq!(delivery.info().attempt, 2);
    assert!(start.elapsed() > Duration::from_secs(4190), "{:?}", start.elapsed());

    // A consumer that disappears: its lease runs out once the subscription is dropped.
    std::mem::forget(delivery);
    let second = bus.subscribe(spec(1)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(300), second.next()).await.is_err());
    drop(subscription);
    let dropped = tokio::time::Instant::now();
    assert_eq!(second.next().await.unwrap().info().attempt, 3);
    assert!(dropped.elapsed() >= Subscribe::DEFAULT_LEASE);
}

#[tokio::test]
async fn full_of_needed_messages_refuses_and_goes_on_when_they_are_settled() {
    let bus = bounded(3);
    // No group needs these messages, so the log drops them.
    for _ in 0..10 {
        bus.publish(message("old")).await.unwrap();
    }
    let subscription = bus.subscribe(spec(3)).await.unwrap();
    for _ in 0..3 {
        bus.publish(message("new")).await.unwrap();
    }
    let error = bus.publish(message("more")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    let first = subscription.next().await.unwrap();
    first.reject(Rejection::new(Reason::Permanent, "no")).await.unwrap();
    // A dead letter still occupies room.
    assert_eq!(bus.publish(message("more")).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(bus.admin().drop_dead_letters(DeadLetterFilter::default()).await.unwrap(), 1);
    bus.publish(message("more")).await.unwrap();
    assert_eq!(bus.publish(message("most")).await.unwrap_err().kind(), ErrorKind::Full);
}

#[tokio::test]
async fn expired_messages_make_room() {
    let bus = bounded(2);
    let _group = {
        let subscription = bus.subscribe(spec(1)).await.unwrap();
        subscription.stop();
        subscription
    };
    for _ in 0..5 {
        let mut message = message("stale");
        message.expires_at = Some(Timestamp::now() - SignedDuration::from_secs(1));
        bus.publish(message).await.unwrap();
    }
}

#[tokio::test]
async fn seeking_back_keeps_what_the_log_forgot_but_the_group_is_owed() {
    let bus = bounded(2);
    let subscription = bus.subscribe(spec(1)).await.unwrap();
    bus.publish(message("owed")).await.unwrap();
    let owed = subscription.next().await.unwrap();
    // The log drops the record of the message that is in flight.
    let mut elsewhere = message("x");
    elsewhere.subject = Subject::new("other").unwrap();
    for _ in 0..5 {
        bus.publish(elsewhere.clone()).await.unwrap();
    }
    bus.admin().seek(Group::new("g").unwrap(), Start::Earliest).await.unwrap();
    assert_eq!(owed.ack().await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(text(&subscription.next().await.unwrap()), "owed");
}

#[tokio::test]
async fn a_thousand_failing_keys_take_no_room_beyond_their_messages() {
    let bus = bounded(2000);
    let mut keyed = spec(16);
    keyed.keyed = true;
    let subscription = bus.subscribe(keyed).await.unwrap();
    for n in 0..1000 {
        bus.publish(message(&format!("k{n}"))).await.unwrap();
    }
    for round in 1..=3 {
        for _ in 0..1000 {
            let delivery = subscription.next().await.unwrap();
            assert_eq!(delivery.info().attempt, round);
            delivery.retry(Duration::ZERO, "again").await.unwrap();
        }
    }
    let status = bus.admin().groups().await.unwrap().remove(0);
    assert_eq!(status.waiting + status.in_flight, 1000);
}
