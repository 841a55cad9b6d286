//! Cases for draining a subscription: stop fetching, release deliveries that were not started, finish the
//! running ones.

use std::collections::HashSet;
use std::time::Duration;

use event_client::subscription::Health;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, keyed, message, text};

cases! {
    a_stopped_subscription_fetches_no_more;
    what_was_not_taken_goes_back_at_once;
    what_was_taken_can_still_be_settled;
    order_is_kept_over_a_drain;
    health_tells_live_and_stopped;
    draining_under_load_loses_nothing;
    a_stop_amid_a_backlog_repeats_nothing;
}

/// After `stop` no more deliveries arrive.
async fn a_stopped_subscription_fetches_no_more(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2)).await;
    exam.publish(message("a")).await;
    exam.ack(exam.next(&subscription).await).await;
    subscription.stop();
    exam.publish(message("b")).await;
    exam.waits_for("the end of the stopped subscription");
    assert!(subscription.next().await.is_none());
    let other = exam.subscribe(group("g", 1)).await;
    assert_eq!(text(&exam.next(&other).await), "b");
}

/// A delivery that was fetched but not taken goes to another member at once, with the same attempt number.
async fn what_was_not_taken_goes_back_at_once(exam: Exam) {
    let draining = exam.subscribe(group("g", 8)).await;
    for n in 0..8 {
        exam.publish(message(n.to_string())).await;
    }
    exam.until("g", "all to be fetched", |status| status.in_flight == 8).await;
    let running = exam.next(&draining).await;
    let staying = exam.ok("the other member", exam.another().await.subscribe(group("g", 8))).await;
    draining.stop();
    let mut seen = HashSet::from([text(&running)]);
    while seen.len() < 8 {
        let delivery = exam.next_of(&staying, "a released delivery").await;
        assert_eq!(delivery.info().attempt, 1);
        assert!(seen.insert(text(&delivery)), "{} came twice", text(&delivery));
        exam.ack(delivery).await;
    }
    exam.ack(running).await;
    exam.settled("g").await;
}

/// `stop` does not take away deliveries that are being handled.
async fn what_was_taken_can_still_be_settled(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2)).await;
    for text in ["acked", "retried"] {
        exam.publish(message(text)).await;
    }
    let (first, second) = (exam.next(&subscription).await, exam.next(&subscription).await);
    subscription.stop();
    exam.ack(first).await;
    exam.ok("retry", second.retry(Duration::from_secs(600), "later")).await;
    let status = exam.status("g").await;
    assert_eq!((status.in_flight, status.retrying), (0, 1));
}

/// Released messages are delivered again in their original order.
async fn order_is_kept_over_a_drain(exam: Exam) {
    let draining = exam.subscribe(group("g", 4).keyed()).await;
    for n in 0..6 {
        for key in ["a", "b"] {
            exam.publish(keyed(key, n.to_string())).await;
        }
    }
    exam.ack(exam.next(&draining).await).await;
    draining.stop();
    drop(draining);
    let next = exam.subscribe(group("g", 4).keyed()).await;
    let mut last = std::collections::HashMap::new();
    for _ in 0..11 {
        let delivery = exam.next(&next).await;
        let n: usize = text(&delivery).parse().expect("a number");
        let before = last.insert(crate::message::key(&delivery), n);
        assert!(before.is_none_or(|before| before + 1 == n), "{n} after {before:?}");
        exam.ack(delivery).await;
    }
}

/// A subscription's health shows whether it is ready.
async fn health_tells_live_and_stopped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut health = subscription.health();
    exam.waits_for("the subscription to be live");
    health.wait_for(|health| *health == Health::Live).await.expect("reported");
    subscription.stop();
    exam.waits_for("the subscription to be stopped");
    // The transport's sender may have been dropped already; then the last value counts.
    let _ = health.wait_for(|health| *health == Health::Stopped).await;
    assert_eq!(*subscription.health().borrow(), Health::Stopped);
}

/// Members that join and leave under load lose no message and, because none of them crashes, repeat none.
async fn draining_under_load_loses_nothing(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    let publisher = exam.bus().clone();
    let publishing = tokio::spawn(async move {
        for n in 0..600 {
            publisher.publish(message(n.to_string())).await.expect("confirmed");
        }
    });
    let mut seen = HashSet::new();
    while seen.len() < 600 {
        let member = exam.subscribe(group("g", 16)).await;
        for _ in 0..30.min(600 - seen.len()) {
            let delivery = exam.next_of(&member, &format!("message {} of 600", seen.len() + 1)).await;
            assert!(seen.insert(text(&delivery)), "{} came twice", text(&delivery));
            exam.ack(delivery).await;
        }
        member.stop();
    }
    publishing.await.expect("no panic");
    exam.settled("g").await;
}

/// The messages that a stopping member has fetched from a long backlog are delivered once, although another
/// member fetches at the same time.
async fn a_stop_amid_a_backlog_repeats_nothing(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    let confirmed: Vec<_> = (0..1500).map(|n| exam.bus().publish(message(n.to_string()))).collect();
    for confirm in confirmed {
        exam.ok("publish", confirm).await;
    }
    exam.subscribe(group("g", 256)).await.stop();
    let staying = exam.subscribe(group("g", 256)).await;
    let mut seen = HashSet::new();
    while seen.len() < 1500 {
        let delivery = exam.next_of(&staying, &format!("message {} of 1500", seen.len() + 1)).await;
        assert!(seen.insert(text(&delivery)), "{} came twice", text(&delivery));
        drop(delivery.ack());
    }
    staying.stop();
    exam.settled("g").await;
}
