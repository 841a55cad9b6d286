//! Cases for closing a handle: `close` may be called repeatedly, later calls fail with `Closed`, and other
//! handles are unaffected.

use std::collections::HashSet;
use std::time::Duration;

use event_client::ErrorKind;
use event_client::transport::{DeadLetterFilter, Serve, Start};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{broadcast, group, group_name, message, on, subject, text};

cases! {
    close_is_idempotent;
    later_calls_answer_closed;
    close_hands_back_what_is_unsettled;
    close_ends_subscriptions;
    close_answers_who_waits;
    close_leaves_other_handles_alone;
    close_waits_for_what_was_published;
}

/// `close` may be called several times, also at the same time.
async fn close_is_idempotent(exam: Exam) {
    let bus = exam.another().await;
    exam.waits_for("two closes at the same time");
    let (one, two) = tokio::join!(bus.close(), bus.close());
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    exam.ok("a third close", bus.close()).await;
}

/// Every call on a closed handle fails with `ErrorKind::Closed`.
async fn later_calls_answer_closed(exam: Exam) {
    let bus = exam.another().await;
    exam.ok("close", bus.close()).await;
    let closed = ErrorKind::Closed;
    exam.refused(closed, "publish", bus.publish(message("x"))).await;
    exam.refused(closed, "subscribe", bus.subscribe(group("g", 1))).await;
    exam.refused(closed, "broadcast", bus.subscribe(broadcast())).await;
    exam.refused(closed, "call", bus.requests().call(on("shop.quote", "x"), Duration::from_secs(5))).await;
    let spec = Serve::new("s", vec![subject("shop.quote")], 1);
    exam.refused(closed, "serve", bus.requests().serve(spec)).await;
    let all = DeadLetterFilter::default;
    exam.refused(closed, "dead letters", bus.admin().dead_letters(all())).await;
    exam.refused(closed, "replay", bus.admin().replay_dead_letters(all())).await;
    exam.refused(closed, "drop", bus.admin().drop_dead_letters(all())).await;
    exam.refused(closed, "groups", bus.admin().groups()).await;
    exam.refused(closed, "seek", bus.admin().seek(group_name("g"), Start::New)).await;
    exam.refused(closed, "delete", bus.admin().delete_group(group_name("g"))).await;
    exam.refused(closed, "ping", bus.admin().ping()).await;
}

/// The closed handle's unsettled deliveries go to other members at once; nothing is lost.
async fn close_hands_back_what_is_unsettled(exam: Exam) {
    let closing = exam.another().await;
    let member = exam.ok("subscribe", closing.subscribe(group("g", 4))).await;
    for n in 0..4 {
        exam.publish(message(n.to_string())).await;
    }
    let taken = exam.next(&member).await;
    let staying = exam.subscribe(group("g", 8)).await;
    exam.ok("close", closing.close()).await;
    let mut seen = HashSet::new();
    while seen.len() < 4 {
        let delivery = exam.next_of(&staying, "the closed handle's delivery").await;
        seen.insert(text(&delivery));
        exam.ack(delivery).await;
    }
    exam.waits_for("the late ack to be refused");
    assert!(taken.ack().await.is_err(), "a closed handle settled a message that another member holds");
    exam.settled("g").await;
}

/// `close` ends the subscriptions of consumers that wait for a delivery.
async fn close_ends_subscriptions(exam: Exam) {
    let bus = exam.another().await;
    let member = exam.ok("subscribe", bus.subscribe(group("g", 1))).await;
    let listener = exam.ok("broadcast", bus.subscribe(broadcast())).await;
    let waiting =
        tokio::spawn(async move { member.next().await.is_none() && listener.next().await.is_none() });
    exam.ok("close", bus.close()).await;
    exam.waits_for("the subscriptions to end");
    assert!(waiting.await.expect("no panic"), "a delivery arrived after the close");
}

/// `close` ends waiting calls and running responders.
async fn close_answers_who_waits(exam: Exam) {
    let spec = Serve::new("s", vec![subject("shop.quote")], 1);
    let mut server = exam.ok("serve", exam.requests().serve(spec.clone())).await;
    let bus = exam.another().await;
    let call = bus.requests().call(on("shop.quote", "x"), Duration::from_secs(3600));
    let mut replies = exam.ok("the call", call).await;
    exam.waits_for("the request at the responder");
    let request = server.recv().await.expect("a request");
    let spec = Serve { subjects: vec![subject("shop.other")], ..spec };
    let mut serving = exam.ok("serve", bus.requests().serve(spec)).await;
    exam.ok("close", bus.close()).await;
    exam.waits_for("the call to end");
    let end = replies.next().await;
    assert!(!matches!(end, Some(Ok(_))), "a reply although no responder sent one: {end:?}");
    exam.waits_for("the responder's receiver to end");
    assert!(serving.recv().await.is_none());
    exam.waits_for("the responder to be notified that the caller has left");
    request.responder.gone().cancelled().await;
}

/// Closing one handle does not close another.
async fn close_leaves_other_handles_alone(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let other = exam.another().await;
    exam.ok("close", other.close()).await;
    exam.publish(message("still here")).await;
    let delivery = exam.next(&subscription).await;
    assert_eq!(text(&delivery), "still here");
    exam.ack(delivery).await;
}

/// Every message published before the close is confirmed or refused, and each answer is correct.
async fn close_waits_for_what_was_published(exam: Exam) {
    let subscription = exam.subscribe(group("g", 64)).await;
    let bus = exam.another().await;
    let confirms: Vec<_> = (0..200).map(|n| bus.publish(message(n.to_string()))).collect();
    exam.ok("close", bus.close()).await;
    let mut stored = HashSet::new();
    for (n, confirm) in confirms.into_iter().enumerate() {
        exam.waits_for(format!("the answer for message {n}"));
        match confirm.await {
            Ok(_) => drop(stored.insert(n.to_string())),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}"),
        }
    }
    while !stored.is_empty() {
        let delivery = exam.next_of(&subscription, &format!("{} confirmed messages", stored.len())).await;
        stored.remove(&text(&delivery));
        exam.ack(delivery).await;
    }
}
