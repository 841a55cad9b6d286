//! Cases for at-least-once delivery: an unsettled message is delivered again, its attempts are counted, and
//! only its own group receives it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{SHORT, With, group, keyed, message, text, vanish};

cases! {
    unacked_message_returns;
    a_crash_counts_as_an_attempt;
    attempts_grow_over_members_and_handles;
    only_the_failing_group_sees_a_retry;
    a_redelivery_is_the_same_message;
    every_prefetched_message_returns;
    a_retry_waits_out_its_time_with_the_next_member;
}

/// Long enough for another member to join before the retry is due.
const WAIT: Duration = Duration::from_secs(3);

/// The deliveries of a crashed or silent consumer go to another member within the lease.
async fn unacked_message_returns(exam: Exam) {
    let other = exam.another().await;
    let dying = exam.ok("the first member", other.subscribe(group("g", 1).lease(SHORT))).await;
    exam.publish(message("again")).await;
    let taken = exam.next(&dying).await;
    let heir = exam.subscribe(group("g", 1).lease(SHORT)).await;
    let died = Instant::now();
    vanish(dying, vec![taken]);
    let delivery = exam.next_of(&heir, "the dead consumer's delivery").await;
    assert_eq!(text(&delivery), "again");
    // More than twice the lease: the lease may have been renewed just before the end, and the machine may be
    // busy.
    assert!(died.elapsed() < SHORT * 5, "only after {:?}", died.elapsed());
    exam.ack(delivery).await;
    exam.settled("g").await;
}

/// A crash of the consumer counts as an attempt, so that a message that kills its consumers can be detected.
async fn a_crash_counts_as_an_attempt(exam: Exam) {
    exam.found(group("g", 1).lease(SHORT)).await;
    exam.publish(message("poison")).await;
    for attempt in 1..=3 {
        let bus = exam.another().await;
        let member = exam.ok("a member", bus.subscribe(group("g", 1).lease(SHORT))).await;
        let delivery = exam.next_of(&member, &format!("attempt {attempt}")).await;
        assert_eq!(delivery.info().attempt, attempt);
        vanish(member, vec![delivery]);
    }
}

/// The attempt grows by one on each delivery, whichever member receives it.
async fn attempts_grow_over_members_and_handles(exam: Exam) {
    let other = exam.another().await;
    exam.found(group("g", 1)).await;
    exam.publish(message("again")).await;
    for attempt in 1..=6 {
        let bus = if attempt % 2 == 0 { &other } else { exam.bus() };
        let member = exam.ok("a member", bus.subscribe(group("g", 1))).await;
        let delivery = exam.next_of(&member, &format!("attempt {attempt}")).await;
        assert_eq!(delivery.info().attempt, attempt);
        exam.ok("retry", delivery.retry(Duration::from_millis(5), "failed")).await;
    }
}

/// A retry reaches the failing group only.
async fn only_the_failing_group_sees_a_retry(exam: Exam) {
    let failing = exam.subscribe(group("failing", 1)).await;
    let healthy = exam.subscribe(group("healthy", 1)).await;
    exam.publish(message("a")).await;
    exam.ack(exam.next(&healthy).await).await;
    for _ in 0..3 {
        exam.ok("retry", exam.next(&failing).await.retry(Duration::ZERO, "failed")).await;
    }
    exam.publish(message("marker")).await;
    let delivery = exam.next(&healthy).await;
    assert_eq!((text(&delivery), delivery.info().attempt), ("marker".into(), 1));
}

/// Identity, key, headers and bytes are the same on every attempt.
async fn a_redelivery_is_the_same_message(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = keyed("k", "body");
    sent.headers.set("tenant", "größe").expect("a valid header");
    exam.publish(sent.clone()).await;
    let first = exam.next(&subscription).await;
    let (position, at) = (first.info().position, first.info().published_at);
    assert_eq!(**first.message(), sent);
    exam.ok("retry", first.retry(Duration::ZERO, "failed")).await;
    let second = exam.next(&subscription).await;
    assert_eq!(**second.message(), sent);
    assert_eq!((second.info().position, second.info().published_at), (position, at));
}

/// Messages that a dead consumer had fetched but not started are delivered again too.
async fn every_prefetched_message_returns(exam: Exam) {
    let other = exam.another().await;
    let dying = exam.ok("the first member", other.subscribe(group("g", 8).lease(SHORT))).await;
    for n in 0..8 {
        exam.publish(message(n.to_string())).await;
    }
    let first = exam.next(&dying).await;
    exam.until("g", "all to be fetched", |status| status.in_flight == 8).await;
    let mut taken = vec![first];
    while taken.len() < 8 {
        taken.push(exam.next(&dying).await);
    }
    vanish(dying, taken);
    let heir = exam.subscribe(group("g", 8).lease(SHORT)).await;
    let mut seen = HashSet::new();
    while seen.len() < 8 {
        let delivery = exam.next_of(&heir, "the dead consumer's delivery").await;
        seen.insert(text(&delivery));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// The delay of a retry belongs to the message: it also applies when another member receives the retry.
async fn a_retry_waits_out_its_time_with_the_next_member(exam: Exam) {
    for order in [false, true] {
        let name = if order { "keyed" } else { "free" };
        let mut spec = group(name, 2).lease(SHORT);
        spec.keyed = order;
        let other = exam.another().await;
        let leaving = exam.ok("the first member", other.subscribe(spec.clone())).await;
        exam.publish(keyed("k", "again")).await;
        let delivery = exam.next(&leaving).await;
        let due = Timestamp::now() + WAIT;
        exam.ok("retry", delivery.retry(WAIT, "failed")).await;
        leaving.stop();
        drop(leaving);
        exam.ok("close", other.close()).await;
        let heir = exam.subscribe(spec).await;
        let delivery = exam.next_of(&heir, "the second attempt").await;
        let early = due.duration_since(Timestamp::now());
        assert!(early < SignedDuration::from_millis(5), "{name}: {early:?} early");
        assert_eq!((text(&delivery), delivery.info().attempt), ("again".into(), 2));
        exam.ack(delivery).await;
        exam.settled(name).await;
        drop(heir);
    }
}
