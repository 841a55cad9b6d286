//! Cases for delayed publish: no message is delivered before its time.

use event_client::ErrorKind;
use event_client::message::Message;
use jiff::{SignedDuration, Timestamp};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, keyed, message, text};

cases! {
    a_delayed_message_waits_for_its_time.when(|can| can.delayed);
    a_delayed_message_holds_up_no_other.when(|can| can.delayed);
    delayed_messages_come_in_the_order_of_their_times.when(|can| can.delayed);
    a_time_that_has_passed_is_no_delay.when(|can| can.delayed);
    a_delayed_message_outlives_its_publisher.when(|can| can.delayed);
    a_delay_is_refused.when(|can| !can.delayed);
}

fn delayed(mut message: Message, millis: i64) -> Message {
    message.deliver_at = Some(Timestamp::now() + SignedDuration::from_millis(millis));
    message
}

/// A message with `deliver_at` is not delivered before that time.
async fn a_delayed_message_waits_for_its_time(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let sent = delayed(message("later"), 800);
    let due = sent.deliver_at.expect("just set");
    exam.publish(sent).await;
    let delivery = exam.next_of(&subscription, "the delayed message").await;
    let early = due.duration_since(Timestamp::now());
    assert!(early < SignedDuration::from_millis(5), "{early:?} early");
    assert_eq!((text(&delivery), delivery.info().attempt), ("later".into(), 1));
    exam.ack(delivery).await;
}

/// A delayed message does not delay others, not even those of its key.
async fn a_delayed_message_holds_up_no_other(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1).keyed()).await;
    exam.publish(delayed(keyed("k", "later"), 3_600_000)).await;
    exam.publish(keyed("k", "now")).await;
    assert_eq!(text(&exam.next(&subscription).await), "now");
}

/// Delayed messages are delivered in the order of their times.
async fn delayed_messages_come_in_the_order_of_their_times(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    // All times count from one moment, however long each publish takes.
    let now = Timestamp::now();
    for (name, millis) in [("third", 3000), ("first", 1000), ("second", 2000)] {
        let mut message = message(name);
        message.deliver_at = Some(now + SignedDuration::from_millis(millis));
        exam.publish(message).await;
    }
    for name in ["first", "second", "third"] {
        let delivery = exam.next_of(&subscription, name).await;
        assert_eq!(text(&delivery), name);
        exam.ack(delivery).await;
    }
}

/// A message whose time is in the past is delivered at once.
async fn a_time_that_has_passed_is_no_delay(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(delayed(message("late"), -60_000)).await;
    assert_eq!(text(&exam.next(&subscription).await), "late");
}

/// The publisher may close before the message is due.
async fn a_delayed_message_outlives_its_publisher(exam: Exam) {
    let publisher = exam.another().await;
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.ok("publish", publisher.publish(delayed(message("later"), 700))).await;
    exam.ok("close", publisher.close()).await;
    assert_eq!(text(&exam.next_of(&subscription, "the delayed message").await), "later");
}

/// A transport without delay refuses a delayed message; it does not deliver it at once.
async fn a_delay_is_refused(exam: Exam) {
    let late = delayed(message("later"), 60_000);
    exam.refused(ErrorKind::Unsupported, "a delayed message", exam.bus().publish(late)).await;
}
