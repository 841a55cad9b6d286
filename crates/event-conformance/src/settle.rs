//! Cases for settlements: ack, retry, reject, release, defer and drop.

use std::time::{Duration, Instant};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, permanent, text};

cases! {
    an_ack_is_final;
    a_retry_comes_back_as_the_next_attempt;
    a_retry_waits_as_long_as_asked;
    a_retry_holds_no_slot;
    a_release_comes_back_at_once_and_does_not_count;
    a_dropped_delivery_is_released;
    a_deferred_message_waits_and_does_not_count;
    a_deferred_message_holds_no_slot;
    a_deferred_message_goes_to_another_member;
    a_rejected_message_does_not_come_back;
    the_work_goes_on_when_the_confirmation_is_dropped;
}

/// An acknowledged message is never delivered to this group again.
async fn an_ack_is_final(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("once")).await;
    exam.ack(exam.next(&subscription).await).await;
    drop(subscription);
    exam.publish(message("marker")).await;
    let other = exam.another().await;
    let again = exam.ok("subscribe", other.subscribe(group("g", 1))).await;
    assert_eq!(text(&exam.next(&again).await), "marker");
}

/// A failed message is delivered again, as the next attempt.
async fn a_retry_comes_back_as_the_next_attempt(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let sent = message("again");
    exam.publish(sent.clone()).await;
    for attempt in 1..=5 {
        let delivery = exam.next_of(&subscription, &format!("attempt {attempt}")).await;
        assert_eq!((delivery.info().attempt, &**delivery.message()), (attempt, &sent));
        exam.ok("retry", delivery.retry(Duration::ZERO, "failed")).await;
    }
}

/// A retry is delivered no earlier than after `after`, and other messages are delivered meanwhile.
async fn a_retry_waits_as_long_as_asked(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("slow")).await;
    exam.publish(message("other")).await;
    let pause = Duration::from_millis(700);
    let delivery = exam.next(&subscription).await;
    let before = Instant::now();
    exam.ok("retry", delivery.retry(pause, "busy")).await;
    let other = exam.next(&subscription).await;
    assert_eq!(text(&other), "other");
    exam.ack(other).await;
    let again = exam.next_of(&subscription, "the retry").await;
    // A server's clock has a resolution of milliseconds.
    assert!(before.elapsed() + Duration::from_millis(5) >= pause, "back after {:?}", before.elapsed());
    assert_eq!((text(&again), again.info().attempt), ("slow".into(), 2));
}

/// A message that waits for its retry uses no credit.
async fn a_retry_holds_no_slot(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..20 {
        exam.publish(message(n.to_string())).await;
    }
    for n in 0..20 {
        let delivery = exam.next_of(&subscription, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ok("retry", delivery.retry(Duration::from_secs(600), "down")).await;
    }
    assert_eq!(exam.status("g").await.retrying, 20);
}

/// A released message goes back to the group at once, and the attempt is not counted.
async fn a_release_comes_back_at_once_and_does_not_count(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("again")).await;
    for _ in 0..3 {
        let delivery = exam.next(&subscription).await;
        assert_eq!((text(&delivery), delivery.info().attempt), ("again".into(), 1));
        exam.ok("release", delivery.release()).await;
    }
}

/// A delivery that is dropped unsettled is released, so that no code path can lose one.
async fn a_dropped_delivery_is_released(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("again")).await;
    drop(exam.next(&subscription).await);
    let again = exam.next_of(&subscription, "the dropped delivery").await;
    assert_eq!((text(&again), again.info().attempt), ("again".into(), 1));
}

/// A deferred message is not delivered before its time, the attempt is not counted, and other messages are
/// delivered meanwhile.
async fn a_deferred_message_waits_and_does_not_count(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("newer")).await;
    exam.publish(message("other")).await;
    let pause = Duration::from_millis(400);
    let mut before = Instant::now();
    exam.ok("defer", exam.next(&subscription).await.defer(pause)).await;
    let other = exam.next(&subscription).await;
    assert_eq!(text(&other), "other");
    exam.ack(other).await;
    for round in 1..=3 {
        let again = exam.next_of(&subscription, &format!("the deferred message, round {round}")).await;
        assert!(before.elapsed() + Duration::from_millis(5) >= pause, "back after {:?}", before.elapsed());
        assert_eq!((text(&again), again.info().attempt), ("newer".into(), 1));
        before = Instant::now();
        exam.ok("defer", again.defer(pause)).await;
    }
    let again = exam.next_of(&subscription, "the deferred message").await;
    exam.ok("retry", again.retry(Duration::ZERO, "failed")).await;
    let again = exam.next_of(&subscription, "the next attempt").await;
    assert_eq!((text(&again), again.info().attempt), ("newer".into(), 2));
    exam.ok("defer", again.defer(Duration::ZERO)).await;
    let again = exam.next_of(&subscription, "the same attempt").await;
    assert_eq!(again.info().attempt, 2);
    exam.ack(again).await;
    exam.settled("g").await;
}

/// Any number of deferred messages, for any time, use no credit.
async fn a_deferred_message_holds_no_slot(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..20 {
        exam.publish(message(n.to_string())).await;
    }
    for n in 0..20 {
        let delivery = exam.next_of(&subscription, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ok("defer", delivery.defer(Duration::from_secs(600))).await;
    }
    let status = exam.status("g").await;
    assert_eq!((status.waiting, status.in_flight), (20, 0), "{status:?}");
}

/// A member that cannot handle a message defers it, and another member receives it.
async fn a_deferred_message_goes_to_another_member(exam: Exam) {
    let other = exam.another().await;
    let old = exam.ok("the old member", other.subscribe(group("g", 1))).await;
    exam.publish(message("newer")).await;
    let delivery = exam.next(&old).await;
    exam.ok("defer", delivery.defer(Duration::from_millis(100))).await;
    let new = exam.subscribe(group("g", 1)).await;
    let delivery = loop {
        exam.waits_for("the deferred message at the new member");
        tokio::select! {
            delivery = old.next() => {
                let delivery = delivery.expect("the old member continues");
                exam.ok("defer", delivery.defer(Duration::from_millis(100))).await;
            }
            delivery = new.next() => break delivery.expect("the new member continues"),
        }
    };
    assert_eq!((text(&delivery), delivery.info().attempt), ("newer".into(), 1));
    exam.ack(delivery).await;
    exam.settled("g").await;
}

/// A rejected message becomes a dead letter and is not delivered again.
async fn a_rejected_message_does_not_come_back(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("bad")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    exam.publish(message("marker")).await;
    assert_eq!(text(&exam.next(&subscription).await), "marker");
    assert_eq!(exam.status("g").await.dead, 1);
}

/// A settlement is carried out whether or not its confirmation is awaited.
async fn the_work_goes_on_when_the_confirmation_is_dropped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    for text in ["acked", "rejected"] {
        exam.publish(message(text)).await;
    }
    drop(exam.next(&subscription).await.ack());
    drop(exam.next(&subscription).await.reject(permanent("no")));
    exam.settled("g").await;
    exam.until("g", "the dead letter", |status| status.dead == 1).await;
}
