//! Cases for the operator's interface: lag, members, moving (seek) and deleting groups.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::message::Position;
use event_client::transport::Start;
use jiff::Timestamp;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, group_name, keyed, message, on, permanent, text};

cases! {
    lag_counts_what_is_where;
    lag_counts_what_matches_only;
    lag_tells_the_oldest_unsettled;
    members_are_counted;
    groups_are_listed_with_their_filters;
    seek_delivers_everything_again.when(|can| can.replay);
    seek_goes_to_a_position_or_time.when(|can| can.replay);
    seek_forward_skips;
    seek_gives_up_what_is_unsettled.when(|can| can.replay);
    seek_moves_one_group_only.when(|can| can.replay);
    an_unknown_group_is_not_found;
    a_deleted_group_is_gone;
    a_deleted_group_may_come_back_as_a_new_one;
    ping_answers;
}

/// Counts waiting messages, messages in flight, messages that wait for a retry, and dead letters.
async fn lag_counts_what_is_where(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2)).await;
    for n in 0..10 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ack(exam.next(&subscription).await).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::from_secs(600), "later")).await;
    let (_one, _two) = (exam.next(&subscription).await, exam.next(&subscription).await);
    let status = exam.status("g").await;
    assert_eq!((status.waiting, status.in_flight, status.retrying, status.dead), (6, 2, 1, 1), "{status:?}");
}

/// A group's lag counts only messages that match its filters.
async fn lag_counts_what_matches_only(exam: Exam) {
    drop(exam.subscribe(group("g", 1).filters(&["orders.placed.*"])).await);
    for name in ["orders.placed.v1", "orders.paid.v1", "billing.placed.v1", "orders.placed.v2"] {
        exam.publish(on(name, "x")).await;
    }
    exam.until("g", "two to wait", |status| status.waiting == 2).await;
}

/// Reports the time of the oldest unsettled message, and none when everything is settled.
async fn lag_tells_the_oldest_unsettled(exam: Exam) {
    let before = Timestamp::now() - jiff::SignedDuration::from_secs(2);
    let subscription = exam.subscribe(group("g", 1)).await;
    assert_eq!(exam.status("g").await.oldest_unsettled, None);
    exam.publish(message("old")).await;
    exam.publish(message("new")).await;
    let held = exam.next(&subscription).await;
    let oldest = exam.status("g").await.oldest_unsettled.expect("two are unsettled");
    assert!(oldest >= before && oldest <= Timestamp::now() + jiff::SignedDuration::from_secs(2), "{oldest}");
    if let Some(at) = held.info().published_at {
        assert_eq!(oldest.as_millisecond(), at.as_millisecond());
    }
    exam.ack(held).await;
    exam.ack(exam.next(&subscription).await).await;
    assert_eq!(exam.status("g").await.oldest_unsettled, None);
}

/// Counts the connected members, where the transport can count them.
async fn members_are_counted(exam: Exam) {
    let other = exam.another().await;
    let one = exam.subscribe(group("g", 1)).await;
    let two = exam.ok("the second member", other.subscribe(group("g", 1))).await;
    exam.until("g", "two members", |status| status.members == 2).await;
    drop(two);
    exam.until("g", "one member", |status| status.members == 1).await;
    drop(one);
    exam.until("g", "no member", |status| status.members == 0).await;
}

/// Lists every durable group once, for any number of handles.
async fn groups_are_listed_with_their_filters(exam: Exam) {
    let other = exam.another().await;
    drop(exam.subscribe(group("b", 1)).await);
    let spec = group("a", 1).filters(&["orders.placed.*", "orders.paid.>"]);
    drop(exam.ok("subscribe", other.subscribe(spec)).await);
    let mut groups = exam.ok("groups", exam.admin().groups()).await;
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    let names: Vec<_> = groups.iter().map(|status| status.group.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let mut filters: Vec<_> = groups[0].filters.iter().map(ToString::to_string).collect();
    filters.sort();
    assert_eq!(filters, ["orders.paid.>", "orders.placed.*"]);
}

/// A seek to the earliest message delivers every kept message again, settled or not.
async fn seek_delivers_everything_again(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1).keyed()).await;
    for n in 0..5 {
        exam.publish(keyed("k", n.to_string())).await;
        exam.ack(exam.next(&subscription).await).await;
    }
    exam.ok("seek", exam.admin().seek(group_name("g"), Start::Earliest)).await;
    for n in 0..5 {
        let delivery = exam.next_of(&subscription, &format!("message {n} again")).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// A seek to a position or a time delivers every message from there on.
async fn seek_goes_to_a_position_or_time(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut positions = Vec::new();
    for n in 0..4 {
        positions.push(exam.publish(message(n.to_string())).await.position.expect("a transport with replay"));
        exam.ack(exam.next(&subscription).await).await;
    }
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_secs(3600);
    for (start, first) in
        [(Start::Position(positions[2]), 2), (Start::Position(Position(0)), 0), (Start::Time(long_ago), 0)]
    {
        exam.ok("seek", exam.admin().seek(group_name("g"), start)).await;
        for n in first..4 {
            let delivery = exam.next_of(&subscription, &format!("message {n} from {start:?}")).await;
            assert_eq!(text(&delivery), n.to_string());
            exam.ack(delivery).await;
        }
    }
}

/// A seek to new messages skips the messages that wait.
async fn seek_forward_skips(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    for n in 0..5 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ok("seek", exam.admin().seek(group_name("g"), Start::New)).await;
    exam.settled("g").await;
    exam.publish(message("next")).await;
    let subscription = exam.subscribe(group("g", 1)).await;
    assert_eq!(text(&exam.next(&subscription).await), "next");
}

/// A seek abandons unsettled deliveries, retries included: settling one later returns `LeaseLost`.
async fn seek_gives_up_what_is_unsettled(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2)).await;
    for n in 0..2 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::from_secs(600), "later")).await;
    let held = exam.next(&subscription).await;
    exam.ok("seek", exam.admin().seek(group_name("g"), Start::Earliest)).await;
    exam.refused(ErrorKind::LeaseLost, "an ack after the seek", held.ack()).await;
    for n in 0..2 {
        let delivery = exam.next_of(&subscription, &format!("message {n} again")).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// A seek of one group does not affect another group.
async fn seek_moves_one_group_only(exam: Exam) {
    let (moved, other) = (exam.subscribe(group("moved", 1)).await, exam.subscribe(group("other", 1)).await);
    exam.publish(message("a")).await;
    exam.ack(exam.next(&moved).await).await;
    exam.ack(exam.next(&other).await).await;
    exam.ok("seek", exam.admin().seek(group_name("moved"), Start::Earliest)).await;
    assert_eq!(text(&exam.next_of(&moved, "it again").await), "a");
    exam.publish(message("marker")).await;
    assert_eq!(text(&exam.next(&other).await), "marker");
}

/// Moving or deleting a group that does not exist is an error.
async fn an_unknown_group_is_not_found(exam: Exam) {
    let name = || group_name("no-such-group");
    let error = exam.refused(ErrorKind::NotFound, "seek", exam.admin().seek(name(), Start::New)).await;
    assert!(error.to_string().contains("no-such-group"), "{error}");
    exam.refused(ErrorKind::NotFound, "delete", exam.admin().delete_group(name())).await;
}

/// Deleting a group deletes all messages that wait for it, and ends its members' subscriptions.
async fn a_deleted_group_is_gone(exam: Exam) {
    let other = exam.another().await;
    let member = exam.ok("subscribe", other.subscribe(group("g", 1))).await;
    let idle = exam.subscribe(group("g", 1)).await;
    exam.publish(message("a")).await;
    exam.publish(message("b")).await;
    exam.until("g", "both to be fetched", |status| status.in_flight == 2).await;
    let (one, _two) = (exam.next(&member).await, exam.next(&idle).await);
    exam.ok("delete", exam.admin().delete_group(group_name("g"))).await;
    let groups = exam.ok("groups", exam.admin().groups()).await;
    assert!(groups.is_empty(), "{groups:?}");
    exam.refused(ErrorKind::LeaseLost, "an ack after the deletion", one.ack()).await;
    exam.waits_for("the member's subscription to end");
    assert!(member.next().await.is_none());
}

/// A group that is created again under a deleted group's name starts as a new group does.
async fn a_deleted_group_may_come_back_as_a_new_one(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    exam.publish(message("before")).await;
    exam.ok("delete", exam.admin().delete_group(group_name("g"))).await;
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("after")).await;
    assert_eq!(text(&exam.next(&subscription).await), "after");
}

/// A ping makes one round trip to the storage.
async fn ping_answers(exam: Exam) {
    let took = exam.ok("ping", exam.admin().ping()).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}
