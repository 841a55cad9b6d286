//! Cases for publishing: messages are confirmed, in order, in windows, and a durability that cannot be kept
//! is refused.

use event_client::ErrorKind;
use event_client::message::Durability;
use futures_util::future::join_all;
use jiff::Timestamp;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, on, text};

cases! {
    confirmed_message_is_delivered;
    confirmed_message_outlives_its_publisher;
    confirmed_message_outlives_every_handle.when(|can| can.persistent);
    messages_of_one_task_keep_their_order_per_topic;
    a_window_confirms_every_message;
    concurrent_publishers_lose_nothing;
    dropped_confirmation_gives_up_the_answer_alone;
    positions_grow_within_a_topic;
    delivery_tells_where_and_when_it_was_stored;
    durability_is_kept_or_refused;
}

/// `publish` returns after the message is stored.
async fn confirmed_message_is_delivered(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let sent = message("hello");
    let receipt = exam.publish(sent.clone()).await;
    assert!(!receipt.duplicate);
    let delivery = exam.next(&subscription).await;
    assert_eq!(**delivery.message(), sent);
    exam.ack(delivery).await;
    exam.settled("g").await;
}

/// A confirmed message is available to another handle after the publisher has closed.
async fn confirmed_message_outlives_its_publisher(exam: Exam) {
    let publisher = exam.another().await;
    exam.found(group("g", 1)).await;
    exam.ok("publish", publisher.publish(message("kept"))).await;
    exam.ok("close", publisher.close()).await;
    let subscription = exam.subscribe(group("g", 1)).await;
    assert_eq!(text(&exam.next(&subscription).await), "kept");
}

/// A persistent transport keeps a confirmed message when all handles are closed.
async fn confirmed_message_outlives_every_handle(exam: Exam) {
    exam.found(group("g", 1)).await;
    exam.publish(message("kept")).await;
    exam.ok("close", exam.bus().close()).await;
    let again = exam.another().await;
    let subscription = exam.ok("subscribe", again.subscribe(group("g", 1))).await;
    assert_eq!(text(&exam.next(&subscription).await), "kept");
}

/// Messages that one task publishes one after another keep their order per topic, whether or not each is
/// awaited.
async fn messages_of_one_task_keep_their_order_per_topic(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let confirms: Vec<_> = (0..300).map(|n| exam.bus().publish(message(n.to_string()))).collect();
    for confirm in confirms {
        exam.ok("a confirmation", confirm).await;
    }
    for n in 0..300 {
        let delivery = exam.next_of(&subscription, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
}

/// Many messages are published in a window; each is confirmed separately.
async fn a_window_confirms_every_message(exam: Exam) {
    let subscription = exam.subscribe(group("g", 64)).await;
    exam.waits_for("1000 confirmations");
    let confirms = join_all((0..1000).map(|n| exam.bus().publish(message(n.to_string())))).await;
    for (n, confirm) in confirms.into_iter().enumerate() {
        assert!(confirm.is_ok(), "message {n}: {confirm:?}");
    }
    let mut seen = vec![false; 1000];
    for _ in 0..1000 {
        let delivery = exam.next(&subscription).await;
        let n: usize = text(&delivery).parse().expect("a number");
        assert!(!std::mem::replace(&mut seen[n], true), "{n} came twice");
        exam.ack(delivery).await;
    }
}

/// Publishers that wait at the same time share a round trip, and no message is lost.
async fn concurrent_publishers_lose_nothing(exam: Exam) {
    let subscription = exam.subscribe(group("g", 32)).await;
    let other = exam.another().await;
    let publishers = (0..16).map(|task| {
        let bus = if task % 2 == 0 { exam.bus().clone() } else { other.clone() };
        tokio::spawn(async move {
            for n in 0..50 {
                bus.publish(message(format!("{task}/{n}"))).await.expect("confirmed");
            }
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut last = [-1_i32; 16];
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 800 {
        exam.waits_for(format!("message {} of 800", seen.len() + 1));
        let Some(delivery) = subscription.next().await else { panic!("the subscription ended") };
        let body = text(&delivery);
        let (task, n) = body.split_once('/').expect("task/number");
        let (task, n): (usize, i32) = (task.parse().expect("a task"), n.parse().expect("a number"));
        assert!(n > last[task], "{n} of task {task} came after {}", last[task]);
        last[task] = n;
        seen.insert(body);
        exam.ack(delivery).await;
    }
    for publisher in publishers {
        publisher.await.expect("a publisher panicked");
    }
}

/// Dropping a confirmation discards the answer; the message is still published.
async fn dropped_confirmation_gives_up_the_answer_alone(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    drop(exam.bus().publish(message("unawaited")));
    assert_eq!(text(&exam.next(&subscription).await), "unawaited");
}

/// Positions are comparable within one topic.
async fn positions_grow_within_a_topic(exam: Exam) {
    let mut last = None;
    for n in 0..20 {
        let receipt = exam.publish(message(n.to_string())).await;
        exam.publish(on("other", "x")).await;
        if receipt.position.is_some() {
            assert!(receipt.position > last, "{:?} after {last:?}", receipt.position);
            last = receipt.position;
        }
    }
}

/// A delivery carries its message's position, equal to the one in the publisher's receipt, and the time at
/// which it was stored.
async fn delivery_tells_where_and_when_it_was_stored(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    // The clocks of server and client may differ slightly.
    let before = Timestamp::now() - jiff::SignedDuration::from_secs(2);
    let receipt = exam.publish(message("x")).await;
    let delivery = exam.next(&subscription).await;
    assert_eq!(delivery.info().position, receipt.position);
    assert_eq!(delivery.info().attempt, 1);
    assert!(!delivery.info().replayed);
    if let Some(at) = delivery.info().published_at {
        assert!(at >= before && at <= Timestamp::now() + jiff::SignedDuration::from_secs(2), "{at}");
    }
}

/// A durability that cannot be kept is refused, and nothing is stored.
async fn durability_is_kept_or_refused(exam: Exam) {
    let subscription = exam.subscribe(group("g", 8)).await;
    let most = exam.can().max_durability;
    let mut stored = 0;
    for durability in [Durability::Default, Durability::PageCache, Durability::Fsync] {
        let mut message = message(format!("{durability:?}"));
        message.durability = durability;
        if durability <= most {
            exam.publish(message).await;
            stored += 1;
        } else {
            exam.refused(ErrorKind::Unsupported, format!("{durability:?}"), exam.bus().publish(message))
                .await;
        }
    }
    exam.publish(message("last")).await;
    for _ in 0..stored {
        let delivery = exam.next(&subscription).await;
        assert_ne!(text(&delivery), "last");
        exam.ack(delivery).await;
    }
    assert_eq!(text(&exam.next(&subscription).await), "last");
}
