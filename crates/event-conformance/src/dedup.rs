//! Cases for deduplication: with a stable id, a repeated publish adds no message.

use std::collections::HashSet;
use std::time::Duration;

use event_client::ErrorKind;
use event_client::message::{Message, MessageId};
use futures_util::future::join_all;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, permanent, text};

cases! {
    a_repeat_within_the_window_adds_nothing.when(|can| !can.dedup_window.is_zero());
    a_repeat_from_another_handle_adds_nothing.when(|can| !can.dedup_window.is_zero());
    concurrent_repeats_add_one.when(|can| !can.dedup_window.is_zero());
    repeats_in_one_window_add_one.when(|can| !can.dedup_window.is_zero());
    a_settled_message_is_still_known.when(|can| !can.dedup_window.is_zero());
    after_the_window_the_id_is_free
        .when(|can| !can.dedup_window.is_zero())
        .dedup_window(Duration::from_millis(1500));
    without_asking_nothing_is_dropped;
    dedup_is_refused.when(|can| can.dedup_window.is_zero());
}

fn once(id: &str, body: &str) -> Message {
    let mut message = message(body);
    message.id = MessageId::from(id);
    message.dedup = true;
    message
}

/// The earlier message is kept, nothing is added, and the publisher's receipt reports a duplicate.
async fn a_repeat_within_the_window_adds_nothing(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let first = exam.publish(once("id-1", "first")).await;
    let repeat = exam.publish(once("id-1", "repeat")).await;
    assert!(!first.duplicate && repeat.duplicate);
    if repeat.position.is_some() {
        assert_eq!(repeat.position, first.position);
    }
    exam.publish(once("id-2", "other")).await;
    for want in ["first", "other"] {
        let delivery = exam.next(&subscription).await;
        assert_eq!(text(&delivery), want);
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// A publisher that restarts after a crash may publish the same message again.
async fn a_repeat_from_another_handle_adds_nothing(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let publisher = exam.another().await;
    exam.ok("publish", publisher.publish(once("id", "first"))).await;
    exam.ok("close", publisher.close()).await;
    let again = exam.another().await;
    let repeat = exam.ok("publish again", again.publish(once("id", "repeat"))).await;
    assert!(repeat.duplicate);
    assert_eq!(text(&exam.next(&subscription).await), "first");
}

/// Of several publishes with one id at the same time, one adds a message.
async fn concurrent_repeats_add_one(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let tasks = (0..16).map(|n| {
        let bus = exam.bus().clone();
        tokio::spawn(async move { bus.publish(once("id", &n.to_string())).await })
    });
    exam.waits_for("16 confirmations");
    let mut stored = 0;
    for result in join_all(tasks.collect::<Vec<_>>()).await {
        let receipt = result.expect("no panic").expect("confirmed");
        stored += usize::from(!receipt.duplicate);
    }
    assert_eq!(stored, 1);
    exam.publish(message("marker")).await;
    exam.ack(exam.next(&subscription).await).await;
    assert_eq!(text(&exam.next(&subscription).await), "marker");
}

/// Repeats within one batch are detected too.
async fn repeats_in_one_window_add_one(exam: Exam) {
    let subscription = exam.subscribe(group("g", 64)).await;
    exam.waits_for("the confirmations");
    let confirms = join_all((0..60).map(|n| exam.bus().publish(once(&format!("id-{}", n % 20), "x")))).await;
    let stored =
        confirms.iter().filter(|result| result.as_ref().is_ok_and(|receipt| !receipt.duplicate)).count();
    assert_eq!(stored, 20, "{confirms:?}");
    exam.publish(message("marker")).await;
    let mut ids = HashSet::new();
    loop {
        let delivery = exam.next(&subscription).await;
        if text(&delivery) == "marker" {
            break;
        }
        assert!(ids.insert(delivery.message().id.clone()), "{} came twice", delivery.message().id);
        exam.ack(delivery).await;
    }
    assert_eq!(ids.len(), 20);
}

/// The id is kept for the window, which does not depend on when the message is settled.
async fn a_settled_message_is_still_known(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(once("a", "acked")).await;
    exam.ack(exam.next(&subscription).await).await;
    exam.publish(once("b", "dead")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    for id in ["a", "b"] {
        assert!(exam.publish(once(id, "repeat")).await.duplicate);
    }
}

/// After the window the id can be used again.
async fn after_the_window_the_id_is_free(exam: Exam) {
    let window = exam.can().dedup_window;
    assert!(window <= Duration::from_secs(5), "the fixture gave a window of {window:?}");
    let subscription = exam.subscribe(group("g", 4)).await;
    exam.publish(once("id", "first")).await;
    exam.waits_for("the window to pass");
    let mut repeats = 0;
    tokio::time::sleep(window).await;
    while exam.publish(once("id", "second")).await.duplicate {
        repeats += 1;
        assert!(repeats < 100, "the id is still taken long after the window");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for want in ["first", "second"] {
        let delivery = exam.next(&subscription).await;
        assert_eq!(text(&delivery), want);
        exam.ack(delivery).await;
    }
}

/// Only messages with a dedup id are deduplicated.
async fn without_asking_nothing_is_dropped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let sent = message("twice");
    for _ in 0..2 {
        assert!(!exam.publish(sent.clone()).await.duplicate);
    }
    for _ in 0..2 {
        exam.ack(exam.next(&subscription).await).await;
    }
}

/// A transport without dedup refuses a dedup id; it does not store the message twice.
async fn dedup_is_refused(exam: Exam) {
    exam.refused(ErrorKind::Unsupported, "a dedup id", exam.bus().publish(once("id", "x"))).await;
}
