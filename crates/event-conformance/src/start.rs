//! Where a group starts, the same on every transport.

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

/// A new group starts with what is published after it first existed.
async fn new_group_starts_with_what_comes_after(exam: Exam) {
    exam.publish(message("before")).await;
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("after")).await;
    assert_eq!(text(&exam.next(&subscription).await), "after");
}

/// The group exists durably when `subscribe` returns, for every handle.
async fn group_exists_when_subscribe_returns(exam: Exam) {
    exam.found(group("g", 1)).await;
    let other = exam.another().await;
    exam.ok("publish", other.publish(message("at once"))).await;
    let subscription = exam.ok("subscribe", other.subscribe(group("g", 1))).await;
    assert_eq!(text(&exam.next(&subscription).await), "at once");
}

/// An existing group goes on where it was, whatever start is asked.
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

/// A time is the first message stored at or after it.
async fn time_starts_with_the_first_stored_since(exam: Exam) {
    let watcher = exam.subscribe(group("watcher", 1)).await;
    let mut times = Vec::new();
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
        let delivery = exam.next(&watcher).await;
        times.push(delivery.info().published_at.expect("a transport with replay tells the time"));
        exam.ack(delivery).await;
        // The next message must be stored in a later tick of whatever clock the transport keeps.
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
    // A time to come is no message yet: the group starts with what comes.
    assert_eq!(text(&exam.next(&future).await), "3");
}

/// A position is that message, and a position before everything is the oldest.
async fn position_starts_with_that_message(exam: Exam) {
    let mut positions = Vec::new();
    for n in 0..3 {
        let receipt = exam.publish(message(n.to_string())).await;
        positions.push(receipt.position.expect("a transport with replay tells positions"));
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

/// Without replay, a new group that is to start in the past is refused, and is not made.
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

/// The latest subscription's filters decide for the group; what already waits stays.
async fn latest_filters_stand_for_what_comes_after(exam: Exam) {
    exam.found(group("g", 4).filters(&["orders.placed.>"])).await;
    exam.publish(on("orders.placed.v1", "waits")).await;
    let subscription = exam.subscribe(group("g", 4).filters(&["orders.paid.>"])).await;
    exam.publish(on("orders.placed.v1", "no more")).await;
    exam.publish(on("orders.paid.v1", "from now on")).await;
    // Held, not dropped: what is released comes again, perhaps before the other.
    let waited = exam.next_of(&subscription, "what waited").await;
    let asked_for = exam.next_of(&subscription, "what is asked for now").await;
    assert_eq!((text(&waited), text(&asked_for)), ("waits".into(), "from now on".into()));
}
