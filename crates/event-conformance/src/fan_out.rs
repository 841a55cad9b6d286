//! Cases with several groups: each receives every matching message and settles it independently.

use std::time::Duration;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, permanent, text};

cases! {
    every_group_receives_every_message;
    groups_settle_for_themselves;
    a_group_that_is_away_misses_nothing;
    a_slow_group_holds_up_no_other;
}

/// A message reaches every group whose patterns match.
async fn every_group_receives_every_message(exam: Exam) {
    let mut subscriptions = Vec::new();
    for name in ["a", "b", "c"] {
        subscriptions.push(exam.subscribe(group(name, 4)).await);
    }
    for n in 0..10 {
        exam.publish(message(n.to_string())).await;
    }
    for subscription in &subscriptions {
        for n in 0..10 {
            let delivery = exam.next_of(subscription, &format!("message {n}")).await;
            assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
            exam.ack(delivery).await;
        }
    }
}

/// A settlement in one group does not change the message for another group.
async fn groups_settle_for_themselves(exam: Exam) {
    let (a, b) = (exam.subscribe(group("a", 1)).await, exam.subscribe(group("b", 1)).await);
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ok("a retry", exam.next(&a).await.retry(Duration::from_secs(600), "later")).await;
    exam.ok("a rejection", exam.next(&a).await.reject(permanent("no"))).await;
    exam.ack(exam.next(&a).await).await;
    for n in 0..3 {
        let delivery = exam.next_of(&b, &format!("message {n} in the other group")).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
        exam.ack(delivery).await;
    }
    exam.settled("b").await;
    assert_eq!(exam.status("b").await.dead, 0);
}

/// A group is durable: messages published while it has no member wait for the next member.
async fn a_group_that_is_away_misses_nothing(exam: Exam) {
    exam.found(group("g", 1)).await;
    for n in 0..5 {
        exam.publish(message(n.to_string())).await;
    }
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..5 {
        let delivery = exam.next(&subscription).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
}

/// A group that settles nothing does not delay other groups.
async fn a_slow_group_holds_up_no_other(exam: Exam) {
    let slow = exam.subscribe(group("slow", 1)).await;
    let quick = exam.subscribe(group("quick", 4)).await;
    for n in 0..100 {
        exam.publish(message(n.to_string())).await;
    }
    let held = exam.next(&slow).await;
    for n in 0..100 {
        let delivery = exam.next_of(&quick, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
    assert_eq!(text(&held), "0");
}
