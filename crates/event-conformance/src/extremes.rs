//! Cases with extreme durations and times: each is limited to a bound or refused, and other messages are not
//! affected.

use std::time::Duration;

use event_client::message::{Message, Position};
use event_client::transport::{Serve, Start};
use event_client::{ErrorKind, LONGEST};
use jiff::Timestamp;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, broadcast, group, keyed, message, subject, text};
use crate::requests::{body, frame, reply};

cases! {
    the_longest_retry_ends_no_other_settlement;
    the_shortest_retry_comes_again;
    a_lease_of_any_length_works;
    times_at_both_ends_of_the_calendar_are_delays.when(|can| can.delayed);
    times_at_both_ends_of_the_calendar_are_expiries.when(|can| can.expiry);
    a_start_at_either_end_of_the_calendar_is_a_start.when(|can| can.replay);
    a_call_may_take_any_time;
}

/// Longer than any store or clock can represent.
const TOO_LONG: [Duration; 3] = [Duration::MAX, Duration::from_millis(i64::MAX as u64), LONGEST];
/// Shorter than the resolution of any clock.
const TOO_SHORT: Duration = Duration::from_nanos(1);

/// A very long retry delays one message only: other deliveries can be settled, and the subscription closes.
async fn the_longest_retry_ends_no_other_settlement(exam: Exam) {
    for order in [false, true] {
        let name = if order { "keyed" } else { "free" };
        let mut spec = group(name, 8);
        spec.keyed = order;
        let subscription = exam.subscribe(spec).await;
        for (n, after) in TOO_LONG.into_iter().enumerate() {
            exam.publish(keyed(&format!("waits-{n}"), "waits")).await;
            let delivery = exam.next_of(&subscription, "the delivery to retry later").await;
            assert_eq!(text(&delivery), "waits");
            exam.ok(format!("a retry after {after:?}"), delivery.retry(after, "not before the end")).await;
            exam.publish(keyed(&format!("goes-{n}"), "goes")).await;
            let delivery =
                exam.next_of(&subscription, &format!("the delivery after a retry of {after:?}")).await;
            assert_eq!(text(&delivery), "goes");
            exam.ack(delivery).await;
        }
        exam.until(name, "three to wait", |status| status.waiting + status.in_flight == 3).await;
        let health = subscription.health().borrow().clone();
        assert_eq!(health, event_client::subscription::Health::Live);
    }
}

/// A retry delay of zero or one nanosecond is delivered again at once.
async fn the_shortest_retry_comes_again(exam: Exam) {
    for order in [false, true] {
        let mut spec = group(if order { "keyed" } else { "free" }, 1);
        spec.keyed = order;
        let subscription = exam.subscribe(spec).await;
        exam.publish(keyed("k", "again")).await;
        for (attempt, after) in (1..).zip([Duration::ZERO, TOO_SHORT]) {
            let delivery = exam.next(&subscription).await;
            assert_eq!(delivery.info().attempt, attempt);
            exam.ok(format!("a retry after {after:?}"), delivery.retry(after, "at once")).await;
        }
        let delivery = exam.next(&subscription).await;
        assert_eq!(delivery.info().attempt, 3);
        exam.ack(delivery).await;
    }
}

/// A lease of any length is limited to the transport's bounds.
async fn a_lease_of_any_length_works(exam: Exam) {
    for (n, lease) in [TOO_SHORT].into_iter().chain(TOO_LONG).enumerate() {
        for order in [false, true] {
            let name = format!("g-{n}-{order}");
            let mut spec = group(&name, 1).lease(lease);
            spec.keyed = order;
            let subscription = exam.subscribe(spec).await;
            exam.publish(keyed("k", name.clone())).await;
            // A lease that short may run out before its first renewal; then the message is delivered again.
            loop {
                let delivery =
                    exam.next_of(&subscription, &format!("a delivery with a lease of {lease:?}")).await;
                let ours = delivery.in_progress().await.is_ok() && delivery.ack().await.is_ok();
                if ours {
                    break;
                }
                assert_eq!(lease, TOO_SHORT, "a lease was lost");
            }
            exam.settled(&name).await;
            let name = event_client::subject::Group::new(&name).expect("a valid group");
            drop(subscription);
            exam.ok("the group's end", exam.admin().delete_group(name)).await;
        }
    }
}

/// A time in the far past causes no delay; a time in the far future delays only its own message.
async fn times_at_both_ends_of_the_calendar_are_delays(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let at = |text: &str, time| Message { deliver_at: Some(time), ..message(text) };
    exam.publish(at("at the end", Timestamp::MAX)).await;
    exam.publish(at("at the beginning", Timestamp::MIN)).await;
    let delivery = exam.next_of(&subscription, "the message that was due in the year -9999").await;
    assert_eq!(text(&delivery), "at the beginning");
    exam.ack(delivery).await;
    exam.publish(message("now")).await;
    let delivery = exam.next_of(&subscription, "the message after it").await;
    assert_eq!(text(&delivery), "now");
    exam.ack(delivery).await;
}

/// A message that expired in the far past is skipped, one that expires in the far future is not.
async fn times_at_both_ends_of_the_calendar_are_expiries(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4)).await;
    let until = |text: &str, time| Message { expires_at: Some(time), ..message(text) };
    exam.publish(until("until the beginning", Timestamp::MIN)).await;
    exam.publish(until("until the end", Timestamp::MAX)).await;
    let delivery = exam.next_of(&subscription, "the message that expires in the year 9999").await;
    assert_eq!(text(&delivery), "until the end");
    exam.ack(delivery).await;
    exam.settled("g").await;
}

/// A start before everything is the oldest message, a start after everything is the next message.
async fn a_start_at_either_end_of_the_calendar_is_a_start(exam: Exam) {
    exam.publish(message("before")).await;
    let first = [Start::Time(Timestamp::MIN), Start::Position(Position(0))];
    let last = [Start::Time(Timestamp::MAX), Start::Position(Position(u128::MAX))];
    let starts = first.into_iter().map(|start| (start, "before")).chain(last.map(|start| (start, "after")));
    let mut subscriptions = Vec::new();
    for (n, (start, want)) in starts.enumerate() {
        for spec in [group(&format!("free-{n}"), 1), group(&format!("keyed-{n}"), 1).keyed(), broadcast()] {
            subscriptions.push((exam.subscribe(spec.start(start)).await, start, want));
        }
    }
    exam.publish(message("after")).await;
    for (subscription, start, want) in subscriptions {
        let delivery = exam.next_of(&subscription, &format!("the first message from {start:?}")).await;
        assert_eq!(text(&delivery), want, "{start:?}");
        exam.ack(delivery).await;
    }
}

/// A call with a timeout of zero times out, a call with the longest timeout is answered, and other calls are
/// answered meanwhile.
async fn a_call_may_take_any_time(exam: Exam) {
    let spec = Serve::new("shop", vec![subject("shop.quote")], 8);
    let mut incoming = exam.ok("serve", exam.requests().serve(spec)).await;
    let server = tokio::spawn(async move {
        while let Some(mut request) = incoming.recv().await {
            // The caller without time has ended its call.
            let _ = request.responder.send(frame("here", true)).await;
        }
    });
    let ask = || crate::message::on("shop.quote", "?");
    for within in TOO_LONG {
        let mut replies =
            exam.ok(format!("a call within {within:?}"), exam.requests().call(ask(), within)).await;
        let answer = reply(&exam, &mut replies).await.expect("an answer");
        assert_eq!(body(&answer), "here");
    }
    for within in [Duration::ZERO, TOO_SHORT] {
        exam.waits_for(format!("the refusal of a call within {within:?}"));
        let refused = match exam.requests().call(ask(), within).await {
            Ok(mut replies) => replies.next().await.unwrap_or_else(|| panic!("no answer within {within:?}")),
            Err(error) => Err(error),
        };
        // One millisecond may be enough where a transport counts in milliseconds.
        if let Err(error) = refused {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{within:?}: {error:?}");
        }
    }
    let mut replies = exam.ok("a usual call", exam.requests().call(ask(), Duration::from_secs(60))).await;
    assert_eq!(body(&reply(&exam, &mut replies).await.expect("an answer")), "here");
    server.abort();
}
