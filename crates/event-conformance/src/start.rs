//! Cases for a group's start position, which is the same on every transport.

use event_client::ErrorKind;
use event_client::message::Position;
use event_client::transport::Start;
use jiff::Timestamp;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, message, on, text};

cases! {
    new_group_starts_with_what_comes_after;
    group_exists_when_subscribe_returns;
    existing_group_goes_on_where_it_was;
    earliest_starts_with_the_oldest_kept.when(|can| can.replay);
    time_starts_with_the_first_stored_since.when(|can| can.replay);
    position_starts_with_that_message.when(|can| can.replay);
    a_start_in_the_past_is_refused.when(|can| !can.replay);
    latest_filters_stand_for_what_comes_after;
}

/// A new group starts with the first message published after the group was created.
async fn new_group_starts_with_what_comes_after(exam: Exam) {
    exam.publish(message("before")).await;
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("after")).await;
    assert_eq!(text(&exam.next(&subscription).await), "after");
}

/// The group exists durably, for every handle, when `subscribe` returns.
async fn group_exists_when_subscribe_returns(exam: Exam) {
    exam.found(group("g", 1)).await;
    let other = exam.another().await;
    exam.ok("publish", other.publish(message("at once"))).await;
    let subscription = exam.ok("subscribe", other.subscribe(group("g", 1))).await;
    assert_eq!(text(&exam.next(&subscription).await), "at once");
}

/// An existing group continues from its own position, whatever start the subscription requests.
async fn existing_group_goes_on_where_it_was(exam: Exam) {
    let first = exam.subscribe(group("g", 1)).await;
    exam.publish(message("a")).await;
    exam.ack(exam.next(&first).await).await;
    drop(first);
    exam.publish(message("b")).await;
    let past = [Start::Earliest, Start::Time(Timestamp::MIN), Start::Position(Position(0))];
    for start in [Start::New].into_iter().chain(past) {
        let again = exam.subscribe(group("g", 1).start(start)).await;
        let delivery = exam.next_of(&again, &format!("b, with {start:?}")).await;
        assert_eq!(text(&delivery), "b");
        exam.ok("release", delivery.release()).await;
    }
}

/// `earliest` is the oldest message still kept.
async fn earliest_starts_with_the_oldest_kept(exam: Exam) {
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
        exam.publish(on("other", "not for us")).await;
    }
    let subscription = exam.subscribe(group("g", 1).start(Start::Earliest)).await;
    exam.publish(message("3")).await;
    for n in 0..4 {
        let delivery = exam.next_of(&subscription, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
}

/// A start time is the first message stored at or after that time.
async fn time_starts_with_the_first_stored_since(exam: Exam) {
    let watcher = exam.subscribe(group("watcher", 1)).await;
    let mut times = Vec::new();
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
        let delivery = exam.next(&watcher).await;
        times.push(delivery.info().published_at.expect("a transport with replay reports the time"));
        exam.ack(delivery).await;
        // The next message must be stored in a later tick of the transport's clock.
        exam.waits_for("the clock to go on");
        let told = times[n];
        while Timestamp::now().as_millisecond() <= told.as_millisecond() + 1 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    let subscription = exam.subscribe(group("g", 1).start(Start::Time(times[1]))).await;
    for n in 1..3 {
        let delivery = exam.next_of(&subscription, &format!("message {n}")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
    let later = Timestamp::now() + jiff::SignedDuration::from_secs(3600);
    let future = exam.subscribe(group("future", 1).start(Start::Time(later))).await;
    exam.publish(message("3")).await;
    // A time in the future matches no stored message: the group starts with the next message.
    assert_eq!(text(&exam.next(&future).await), "3");
}

/// A start position is the message at that position, and a position before all messages is the oldest.
async fn position_starts_with_that_message(exam: Exam) {
    let mut positions = Vec::new();
    for n in 0..3 {
        let receipt = exam.publish(message(n.to_string())).await;
        positions.push(receipt.position.expect("a transport with replay reports positions"));
    }
    for (start, first) in [(positions[1], 1), (positions[2], 2), (Position(0), 0)] {
        let spec = group(&format!("g{first}"), 1).start(Start::Position(start));
        let subscription = exam.subscribe(spec).await;
        for n in first..3 {
            let delivery = exam.next_of(&subscription, &format!("message {n} from {start}")).await;
            assert_eq!(text(&delivery), n.to_string());
            exam.ack(delivery).await;
        }
    }
}

/// Without replay, a new group with a start in the past is refused, and is not created.
async fn a_start_in_the_past_is_refused(exam: Exam) {
    for start in [Start::Earliest, Start::Time(Timestamp::now()), Start::Position(Position(1))] {
        let spec = group("g", 1).start(start);
        let error =
            exam.refused(ErrorKind::Unsupported, format!("{start:?}"), exam.bus().subscribe(spec)).await;
        assert!(error.to_string().contains(&start.to_string()), "the error does not name {start}: {error}");
        let groups = exam.ok("the groups", exam.admin().groups()).await;
        assert!(groups.is_empty(), "{groups:?}");
    }
}

/// The latest subscription's filters apply to the group's later messages; messages that wait already stay.
async fn latest_filters_stand_for_what_comes_after(exam: Exam) {
    exam.found(group("g", 4).filters(&["orders.placed.>"])).await;
    exam.publish(on("orders.placed.v1", "waits")).await;
    let subscription = exam.subscribe(group("g", 4).filters(&["orders.paid.>"])).await;
    exam.publish(on("orders.placed.v1", "no more")).await;
    exam.publish(on("orders.paid.v1", "from now on")).await;
    // Keep the first delivery: dropping it would release it, and it could be delivered again before the other
    // message.
    let waited = exam.next_of(&subscription, "the message that waited").await;
    let asked_for = exam.next_of(&subscription, "the message that matches the new filters").await;
    assert_eq!((text(&waited), text(&asked_for)), ("waits".into(), "from now on".into()));
}
