//! Cases for broadcast subscriptions: every subscriber receives every message, and nothing is stored for a
//! subscriber.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::message::Position;
use event_client::transport::Start;
use jiff::Timestamp;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, broadcast, group, message, on, text};

cases! {
    every_subscriber_sees_every_message;
    it_starts_with_what_comes_after;
    it_settles_nothing_and_leaves_no_group;
    a_retry_in_a_group_is_not_seen_again;
    a_slow_subscriber_holds_up_nobody;
    what_a_slow_subscriber_misses_is_counted.few_kept();
    the_kept_messages_can_be_replayed.when(|can| can.replay);
    replay_is_refused.when(|can| !can.replay);
    delayed_messages_come_in_their_time.when(|can| can.delayed);
}

/// The handle of the subscriber makes no difference.
async fn every_subscriber_sees_every_message(exam: Exam) {
    let other = exam.another().await;
    let mut subscriptions = vec![exam.subscribe(broadcast()).await, exam.subscribe(broadcast()).await];
    subscriptions.push(exam.ok("a subscriber on another handle", other.subscribe(broadcast())).await);
    for n in 0..50 {
        exam.publish(message(n.to_string())).await;
    }
    for subscription in &subscriptions {
        for n in 0..50 {
            let delivery = exam.next_of(subscription, &format!("message {n}")).await;
            assert_eq!(text(&delivery), n.to_string());
        }
    }
}

/// A subscriber starts with the first message published after it subscribed.
async fn it_starts_with_what_comes_after(exam: Exam) {
    exam.publish(message("before")).await;
    let subscription = exam.subscribe(broadcast()).await;
    exam.publish(message("after")).await;
    assert_eq!(text(&exam.next(&subscription).await), "after");
}

/// A broadcast subscription leaves no group behind, and settling one of its deliveries has no effect.
async fn it_settles_nothing_and_leaves_no_group(exam: Exam) {
    let subscription = exam.subscribe(broadcast()).await;
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::ZERO, "means nothing")).await;
    exam.ok("ack", exam.next(&subscription).await.ack()).await;
    let last = exam.next(&subscription).await;
    assert_eq!((text(&last), last.info().attempt), ("2".into(), 1));
    let groups = exam.ok("groups", exam.admin().groups()).await;
    assert!(groups.is_empty(), "{groups:?}");
}

/// A retry in a group is not delivered to broadcast subscribers.
async fn a_retry_in_a_group_is_not_seen_again(exam: Exam) {
    let all = exam.subscribe(broadcast()).await;
    let member = exam.subscribe(group("g", 1)).await;
    exam.publish(message("a")).await;
    for _ in 0..3 {
        exam.ok("retry", exam.next(&member).await.retry(Duration::ZERO, "failed")).await;
    }
    exam.publish(message("marker")).await;
    assert_eq!(text(&exam.next(&all).await), "a");
    assert_eq!(text(&exam.next(&all).await), "marker");
}

/// Buffers are bounded: publishers and other subscribers are not delayed, and the slow subscriber continues
/// with the oldest message that is still kept.
async fn a_slow_subscriber_holds_up_nobody(exam: Exam) {
    let mut spec = broadcast();
    spec.max_in_flight = 4;
    let slow = exam.subscribe(spec).await;
    let quick = exam.subscribe(broadcast()).await;
    for n in 0..2000 {
        exam.publish(message(n.to_string())).await;
        assert_eq!(text(&exam.next_of(&quick, &format!("message {n}")).await), n.to_string());
    }
    exam.publish(message("last")).await;
    let mut seen = 0;
    loop {
        let delivery = exam.next_of(&slow, "the last message at the slow subscriber").await;
        seen += 1;
        if text(&delivery) == "last" {
            break;
        }
    }
    assert!(seen <= 2001, "{seen} deliveries");
}

/// A subscriber that is slower than the storage's retention gets the number of messages that it missed, and
/// that number is not too small.
async fn what_a_slow_subscriber_misses_is_counted(exam: Exam) {
    const LARGE: usize = 100 * 1024;
    /// More bytes than any transport keeps for one subscriber.
    const MOST: usize = 128 << 20;
    let mut spec = broadcast();
    spec.max_in_flight = 4;
    let slow = exam.subscribe(spec).await;
    let quick = exam.subscribe(broadcast()).await;
    let (mut published, mut seen, mut bytes) = (0_u64, 0_u64, 0);
    while slow.missed() == 0 {
        if bytes < MOST {
            for _ in 0..64 {
                exam.publish(message("x".repeat(LARGE))).await;
                exam.next_of(&quick, "the quick subscriber's message").await;
            }
            (published, bytes) = (published + 64, bytes + 64 * LARGE);
        } else {
            // Some transports delete old messages on a timer.
            exam.publish(message("small")).await;
            exam.next_of(&quick, "the quick subscriber's message").await;
            published += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        exam.next_of(&slow, "the slow subscriber's message").await;
        seen += 1;
    }
    exam.publish(message("last")).await;
    published += 1;
    while text(&exam.next_of(&slow, "the last message at the slow subscriber").await) != "last" {
        seen += 1;
    }
    seen += 1;
    while seen + slow.missed() < published {
        exam.waits_for(format!("{published} published: {seen} seen, {} counted as missed", slow.missed()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(seen < published, "it should have missed some of {published}");
    assert!(slow.missed() < published, "{} missed of {published}, and {seen} seen", slow.missed());
    assert_eq!(quick.missed(), 0, "the quick one has seen all");
}

/// A broadcast starts at the oldest kept message, at a time or at a position.
async fn the_kept_messages_can_be_replayed(exam: Exam) {
    let since = Timestamp::now() - jiff::SignedDuration::from_secs(60);
    let mut positions = Vec::new();
    for n in 0..3 {
        positions.push(exam.publish(message(n.to_string())).await.position.expect("a transport with replay"));
        exam.publish(on("other", "x")).await;
    }
    let starts = [
        (Start::Earliest, 0),
        (Start::Time(since), 0),
        (Start::Position(positions[1]), 1),
        (Start::Position(Position(0)), 0),
    ];
    for (start, first) in starts {
        let subscription = exam.subscribe(broadcast().start(start)).await;
        for (n, position) in positions.iter().enumerate().skip(first) {
            let delivery = exam.next_of(&subscription, &format!("message {n} from {start:?}")).await;
            assert_eq!(text(&delivery), n.to_string());
            assert_eq!(delivery.info().position, Some(*position));
        }
    }
}

/// A transport without replay refuses a start in the past.
async fn replay_is_refused(exam: Exam) {
    for start in [Start::Earliest, Start::Time(Timestamp::now()), Start::Position(Position(1))] {
        let spec = broadcast().start(start);
        exam.refused(ErrorKind::Unsupported, format!("{start:?}"), exam.bus().subscribe(spec)).await;
    }
}

/// A delayed message is broadcast when it is due.
async fn delayed_messages_come_in_their_time(exam: Exam) {
    let subscription = exam.subscribe(broadcast()).await;
    let mut late = message("late");
    // Long enough for both to be published before the first is due, also on a busy machine.
    let due = Timestamp::now() + jiff::SignedDuration::from_millis(2000);
    late.deliver_at = Some(due);
    exam.publish(late).await;
    exam.publish(message("now")).await;
    assert_eq!(text(&exam.next(&subscription).await), "now");
    assert_eq!(text(&exam.next_of(&subscription, "the delayed message").await), "late");
    assert!(due.duration_since(Timestamp::now()) < jiff::SignedDuration::from_millis(5));
}
