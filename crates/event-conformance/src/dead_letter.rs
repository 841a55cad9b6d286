//! Cases for dead letters: kept with the original bytes and the reason, and replayed to the failing group
//! only.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::delivery::{Reason, Rejection};
use event_client::transport::{DeadLetter, DeadLetterFilter};
use jiff::{SignedDuration, Timestamp};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, group_name, keyed, message, on, pattern, permanent, text};

cases! {
    a_letter_keeps_the_message_and_why;
    every_reason_is_kept;
    a_long_error_is_cut_and_a_short_one_kept;
    letters_are_listed_oldest_first_and_filtered;
    a_replay_reaches_the_failing_group_only;
    a_replay_starts_at_attempt_one_and_says_so;
    a_replayed_message_may_fail_again;
    a_replay_takes_the_chosen_only;
    a_replay_keeps_the_order_of_keys;
    a_replay_is_no_duplicate.when(|can| !can.dedup_window.is_zero());
    a_replayed_message_no_longer_expires.when(|can| can.expiry);
    a_replay_without_a_group_is_refused;
    dropped_letters_are_gone;
    letters_outlive_their_consumers;
}

async fn letters(exam: &Exam, filter: DeadLetterFilter) -> Vec<DeadLetter> {
    exam.ok("the dead letters", exam.admin().dead_letters(filter)).await
}

fn of(name: &str) -> DeadLetterFilter {
    DeadLetterFilter { group: Some(group_name(name)), ..DeadLetterFilter::default() }
}

/// A letter keeps the original bytes, the reason, the error, the attempts and the times.
async fn a_letter_keeps_the_message_and_why(exam: Exam) {
    let before = Timestamp::now() - SignedDuration::from_secs(2);
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = keyed("k", "body");
    sent.payload = bytes::Bytes::from((0..=255).collect::<Vec<u8>>());
    sent.headers.set("tenant", "größe").expect("a valid header");
    exam.publish(sent.clone()).await;
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::ZERO, "first")).await;
    let last = Rejection::new(Reason::Exhausted, "second");
    exam.ok("reject", exam.next(&subscription).await.reject(last)).await;
    let letters = letters(&exam, DeadLetterFilter::default()).await;
    let [letter] = letters.as_slice() else { panic!("want one letter: {letters:?}") };
    assert_eq!(letter.message, sent);
    assert_eq!(letter.group.as_str(), "g");
    assert_eq!((letter.reason, letter.error.as_str(), letter.attempts), (Reason::Exhausted, "second", 2));
    assert!(before <= letter.published_at, "{letter:?}");
    assert!(letter.published_at <= letter.dead_at && letter.first_attempt_at <= letter.dead_at, "{letter:?}");
    assert!(letter.dead_at <= Timestamp::now() + SignedDuration::from_secs(2), "{letter:?}");
    exam.settled("g").await;
}

/// Every reason is stored and returned unchanged.
async fn every_reason_is_kept(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for reason in Reason::ALL {
        exam.publish(message(reason.as_str())).await;
        let rejection = Rejection::new(reason, reason.as_str());
        exam.ok("reject", exam.next(&subscription).await.reject(rejection)).await;
    }
    let all = letters(&exam, of("g")).await;
    assert_eq!(all.iter().map(|letter| letter.reason).collect::<Vec<_>>(), Reason::ALL);
    for reason in Reason::ALL {
        let filter = DeadLetterFilter { reason: Some(reason), ..of("g") };
        assert_eq!(letters(&exam, filter).await.len(), 1, "{reason:?}");
    }
}

/// The error's text is kept up to its limit and cut at a character boundary.
async fn a_long_error_is_cut_and_a_short_one_kept(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for error in ["", "größe\nline", &"ä".repeat(5000)] {
        exam.publish(message("x")).await;
        exam.ok("reject", exam.next(&subscription).await.reject(permanent(error))).await;
    }
    let kept: Vec<_> = letters(&exam, of("g")).await.into_iter().map(|letter| letter.error).collect();
    assert_eq!(kept, ["", "größe\nline", &"ä".repeat(Rejection::MAX_ERROR / 2)]);
}

/// Letters are listed oldest first; a letter must meet every condition of the filter.
async fn letters_are_listed_oldest_first_and_filtered(exam: Exam) {
    let (a, b) = (exam.subscribe(group("a", 1)).await, exam.subscribe(group("b", 1)).await);
    for n in 0..3 {
        exam.publish(on(&format!("orders.n{n}"), n.to_string())).await;
        for subscription in [&a, &b] {
            exam.ok("reject", exam.next(subscription).await.reject(permanent("no"))).await;
        }
    }
    let all = letters(&exam, DeadLetterFilter::default()).await;
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted_by_key(|letter| letter.dead_at), "{all:?}");
    let ids: std::collections::HashSet<_> = all.iter().map(|letter| letter.id.clone()).collect();
    assert_eq!(ids.len(), 6, "ids are unique");
    let of_a = letters(&exam, of("a")).await;
    assert_eq!(
        of_a.iter().map(|letter| letter.message.subject.as_str()).collect::<Vec<_>>(),
        ["orders.n0", "orders.n1", "orders.n2"]
    );
    let by_subject = DeadLetterFilter { subject: Some(pattern("*.n1")), ..of("b") };
    assert_eq!(letters(&exam, by_subject).await.len(), 1);
    let by_id = DeadLetterFilter { ids: vec![all[3].id.clone(), all[4].id.clone()], ..Default::default() };
    assert_eq!(letters(&exam, by_id.clone()).await.len(), 2);
    let both = DeadLetterFilter { group: Some(group_name("a")), ..by_id };
    assert_eq!(letters(&exam, both).await.len(), 1);
    let oldest = DeadLetterFilter { limit: 2, ..of("a") };
    assert_eq!(letters(&exam, oldest).await, of_a[..2]);
    let unknown = DeadLetterFilter { ids: vec!["no-such-letter".into()], ..Default::default() };
    assert!(letters(&exam, unknown).await.is_empty());
}

/// A replay reaches the group that failed, and no other.
async fn a_replay_reaches_the_failing_group_only(exam: Exam) {
    let (failing, healthy) =
        (exam.subscribe(group("failing", 1)).await, exam.subscribe(group("healthy", 1)).await);
    exam.publish(message("a")).await;
    exam.ack(exam.next(&healthy).await).await;
    exam.ok("reject", exam.next(&failing).await.reject(permanent("no"))).await;
    let count = exam.ok("replay", exam.admin().replay_dead_letters(of("failing"))).await;
    assert_eq!(count, 1);
    let again = exam.next_of(&failing, "the replayed message").await;
    assert_eq!(text(&again), "a");
    exam.ack(again).await;
    exam.publish(message("marker")).await;
    assert_eq!(text(&exam.next(&healthy).await), "marker");
    assert!(letters(&exam, DeadLetterFilter::default()).await.is_empty());
}

/// Attempts start at 1 again, the message is marked as replayed, and its bytes are the original's.
async fn a_replay_starts_at_attempt_one_and_says_so(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = keyed("k", "body");
    sent.headers.set("tenant", "a").expect("a valid header");
    exam.publish(sent.clone()).await;
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::ZERO, "failed")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    exam.ok("replay", exam.admin().replay_dead_letters(of("g"))).await;
    for attempt in 1..=2 {
        let delivery = exam.next_of(&subscription, "the replayed message").await;
        assert_eq!((delivery.info().attempt, delivery.info().replayed), (attempt, true));
        let message = delivery.message();
        assert_eq!((&message.payload, &message.id, &message.key), (&sent.payload, &sent.id, &sent.key));
        assert_eq!(message.headers.get("tenant"), Some("a"));
        exam.ok("retry", delivery.retry(Duration::ZERO, "failed")).await;
    }
}

/// A replayed message that fails again becomes a dead letter again.
async fn a_replayed_message_may_fail_again(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("bad")).await;
    for round in 0..3 {
        let delivery = exam.next_of(&subscription, &format!("round {round}")).await;
        exam.ok("reject", delivery.reject(permanent("no"))).await;
        assert_eq!(letters(&exam, of("g")).await.len(), 1);
        assert_eq!(exam.ok("replay", exam.admin().replay_dead_letters(of("g"))).await, 1);
    }
    assert!(letters(&exam, of("g")).await.is_empty());
}

/// A replay sends only the letters that the filter selects.
async fn a_replay_takes_the_chosen_only(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..4 {
        exam.publish(message(n.to_string())).await;
        exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    }
    let all = letters(&exam, of("g")).await;
    let chosen = DeadLetterFilter { ids: vec![all[2].id.clone()], ..Default::default() };
    assert_eq!(exam.ok("replay", exam.admin().replay_dead_letters(chosen.clone())).await, 1);
    let delivery = exam.next(&subscription).await;
    assert_eq!(text(&delivery), "2");
    exam.ack(delivery).await;
    assert_eq!(exam.ok("replay", exam.admin().replay_dead_letters(chosen)).await, 0);
    assert_eq!(letters(&exam, of("g")).await.len(), 3);
    exam.settled("g").await;
}

/// Replayed letters of one key are delivered in their order.
async fn a_replay_keeps_the_order_of_keys(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed()).await;
    for n in 0..5 {
        exam.publish(keyed("k", n.to_string())).await;
        exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    }
    assert_eq!(exam.ok("replay", exam.admin().replay_dead_letters(of("g"))).await, 5);
    for n in 0..5 {
        let delivery = exam.next(&subscription).await;
        assert_eq!(text(&delivery), n.to_string());
        assert!(subscription.try_next().is_none(), "one message of a key at a time");
        exam.ack(delivery).await;
    }
}

/// A dedup id that is still stored does not suppress a replay.
async fn a_replay_is_no_duplicate(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = message("a");
    sent.dedup = true;
    exam.publish(sent).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    exam.ok("replay", exam.admin().replay_dead_letters(of("g"))).await;
    assert_eq!(text(&exam.next_of(&subscription, "the replayed message").await), "a");
}

/// A replay, which an operator requests, takes precedence over the publisher's expiry.
async fn a_replayed_message_no_longer_expires(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = message("a");
    let end = Timestamp::now() + SignedDuration::from_millis(1500);
    sent.expires_at = Some(end);
    exam.publish(sent).await;
    exam.ok("reject", exam.next_of(&subscription, "the message in time").await.reject(permanent("no"))).await;
    exam.waits_for("the message to expire");
    while Timestamp::now() <= end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    exam.ok("replay", exam.admin().replay_dead_letters(of("g"))).await;
    assert_eq!(text(&exam.next_of(&subscription, "the replayed message").await), "a");
}

/// The letters of a deleted group stay until they are dropped; no group can receive their replay.
async fn a_replay_without_a_group_is_refused(exam: Exam) {
    let (gone, here) = (exam.subscribe(group("gone", 1)).await, exam.subscribe(group("here", 1)).await);
    exam.publish(message("a")).await;
    for subscription in [&gone, &here] {
        exam.ok("reject", exam.next(subscription).await.reject(permanent("no"))).await;
    }
    drop(gone);
    exam.ok("delete", exam.admin().delete_group(group_name("gone"))).await;
    let all = DeadLetterFilter::default;
    exam.refused(ErrorKind::NotFound, "a replay", exam.admin().replay_dead_letters(all())).await;
    assert_eq!(letters(&exam, all()).await.len(), 2, "a refused replay replays nothing");
    assert_eq!(exam.ok("drop", exam.admin().drop_dead_letters(of("gone"))).await, 1);
    assert_eq!(exam.ok("replay", exam.admin().replay_dead_letters(all())).await, 1);
}

/// Dropping deletes the selected letters and returns their number.
async fn dropped_letters_are_gone(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..4 {
        exam.publish(message(n.to_string())).await;
        exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    }
    let first = DeadLetterFilter { limit: 1, ..of("g") };
    assert_eq!(exam.ok("drop", exam.admin().drop_dead_letters(first)).await, 1);
    let left = letters(&exam, of("g")).await;
    assert_eq!(
        left.iter().map(|letter| letter.message.payload.as_ref()).collect::<Vec<_>>(),
        [b"1", b"2", b"3"]
    );
    assert_eq!(exam.ok("drop", exam.admin().drop_dead_letters(of("g"))).await, 3);
    assert_eq!(exam.ok("drop", exam.admin().drop_dead_letters(of("g"))).await, 0);
    assert_eq!(exam.status("g").await.dead, 0);
}

/// A dead letter is visible to every handle after its consumer has closed.
async fn letters_outlive_their_consumers(exam: Exam) {
    let other = exam.another().await;
    let subscription = exam.ok("subscribe", other.subscribe(group("g", 1))).await;
    exam.publish(message("bad")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    drop(subscription);
    exam.ok("close", other.close()).await;
    assert_eq!(letters(&exam, of("g")).await.len(), 1);
}
