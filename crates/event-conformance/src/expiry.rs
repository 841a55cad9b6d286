//! Cases for expiry: no message is delivered after its expiry time.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::message::Message;
use jiff::{SignedDuration, Timestamp};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, broadcast, group, keyed, message, text};

cases! {
    an_expired_message_is_skipped.when(|can| can.expiry);
    a_message_that_expires_while_it_waits_is_skipped.when(|can| can.expiry);
    a_message_that_expires_before_its_retry_is_skipped.when(|can| can.expiry);
    an_expired_message_does_not_hold_its_key.when(|can| can.expiry);
    a_message_within_its_time_is_delivered.when(|can| can.expiry);
    an_expired_message_is_not_broadcast.when(|can| can.expiry);
    an_expiry_is_refused.when(|can| !can.expiry);
}

fn expiring(mut message: Message, millis: i64) -> Message {
    message.expires_at = Some(Timestamp::now() + SignedDuration::from_millis(millis));
    message
}

/// An expired message is skipped and no longer counted as waiting.
async fn an_expired_message_is_skipped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(expiring(message("stale"), -1000)).await;
    exam.publish(message("fresh")).await;
    let delivery = exam.next(&subscription).await;
    assert_eq!(text(&delivery), "fresh");
    exam.ack(delivery).await;
    exam.settled("g").await;
    assert_eq!(exam.status("g").await.dead, 0);
}

/// A message may expire while it waits for a free consumer.
async fn a_message_that_expires_while_it_waits_is_skipped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("first")).await;
    let held = exam.next(&subscription).await;
    exam.publish(expiring(message("stale"), 300)).await;
    exam.waits_for("the message to expire");
    tokio::time::sleep(Duration::from_millis(400)).await;
    exam.publish(message("fresh")).await;
    exam.ack(held).await;
    assert_eq!(text(&exam.next(&subscription).await), "fresh");
}

/// A retry that is due after the message's expiry is not made.
async fn a_message_that_expires_before_its_retry_is_skipped(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(expiring(message("stale"), 2000)).await;
    let delivery = exam.next_of(&subscription, "the message before it expires").await;
    exam.ok("retry", delivery.retry(Duration::from_millis(2200), "busy")).await;
    exam.settled("g").await;
    exam.publish(message("fresh")).await;
    assert_eq!(text(&exam.next(&subscription).await), "fresh");
}

/// An expired message does not block the next message of its key.
async fn an_expired_message_does_not_hold_its_key(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1).keyed()).await;
    exam.publish(expiring(keyed("k", "stale"), -1000)).await;
    exam.publish(keyed("k", "fresh")).await;
    assert_eq!(text(&exam.next(&subscription).await), "fresh");
}

/// A message that has not expired is delivered like any other.
async fn a_message_within_its_time_is_delivered(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let sent = expiring(message("fresh"), 3_600_000);
    exam.publish(sent.clone()).await;
    assert_eq!(text(&exam.next(&subscription).await), "fresh");
}

/// Broadcast subscribers do not receive an expired message either.
async fn an_expired_message_is_not_broadcast(exam: Exam) {
    let subscription = exam.subscribe(broadcast()).await;
    exam.publish(expiring(message("stale"), -1000)).await;
    exam.publish(message("fresh")).await;
    assert_eq!(text(&exam.next(&subscription).await), "fresh");
}

/// A transport without expiry refuses an expiring message; it does not keep it for ever.
async fn an_expiry_is_refused(exam: Exam) {
    let stale = expiring(message("stale"), 60_000);
    exam.refused(ErrorKind::Unsupported, "an expiring message", exam.bus().publish(stale)).await;
}
