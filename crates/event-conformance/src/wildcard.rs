//! Cases for subject patterns: `*` is one token, `>` is one or more at the end, on every transport.

use std::collections::BTreeSet;

use event_client::ErrorKind;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, broadcast, group, message, on};

cases! {
    truth_table_within_a_topic;
    truth_table_across_topics.when(|can| can.cross_topic);
    a_group_without_members_counts_topics_that_are_newer.when(|can| can.cross_topic);
    a_wildcard_topic_is_refused.when(|can| !can.cross_topic);
    several_patterns_deliver_a_message_once;
    broadcast_takes_the_same_patterns;
    a_subscription_without_patterns_is_refused;
}

const SUBJECTS: [&str; 9] = [
    "orders",
    "orders.placed",
    "orders.placed.v1",
    "orders.placed.v1.eu",
    "orders.paid.v1",
    "orders-eu.placed.v1",
    "order.placed.v1",
    "billing.placed.v1",
    "billing",
];

/// Each pattern with the indexes of the subjects in the list that it matches.
const WITHIN: [(&str, &[usize]); 9] = [
    ("orders", &[0]),
    ("orders.>", &[1, 2, 3, 4]),
    ("orders.*", &[1]),
    ("orders.*.v1", &[2, 4]),
    ("orders.placed.>", &[2, 3]),
    ("orders.placed.*", &[2]),
    ("orders.*.*.eu", &[3]),
    ("orders.placed.v1", &[2]),
    ("orders.*.>", &[2, 3, 4]),
];

const ACROSS: [(&str, &[usize]); 5] = [
    (">", &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ("*", &[0, 8]),
    ("*.placed.>", &[2, 3, 5, 6, 7]),
    ("*.*.v1", &[2, 4, 5, 6, 7]),
    ("*.>", &[1, 2, 3, 4, 5, 6, 7]),
];

/// A topic appears while nobody reads the group: its messages wait for the group, and the status of the group counts them.
async fn a_group_without_members_counts_topics_that_are_newer(exam: Exam) {
    for (name, pattern) in [("all", ">"), ("part", "*.placed.>")] {
        drop(exam.subscribe(group(name, 16).filters(&[pattern])).await);
    }
    for topic in ["orders", "billing"] {
        for event in ["placed", "paid"] {
            exam.publish(on(&format!("{topic}.{event}.v1"), "x")).await;
        }
    }
    for (name, pattern, messages) in [("all", ">", 4), ("part", "*.placed.>", 2)] {
        let waiting = || async {
            let groups = exam.ok("the groups", exam.admin().groups()).await;
            groups.iter().find(|status| status.group.as_str() == name).map(|status| status.waiting)
        };
        while waiting().await != Some(messages) {
            exam.waits_for(format!("{messages} messages to wait for {name}; now {:?}", waiting().await));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let subscription = exam.subscribe(group(name, 16).filters(&[pattern])).await;
        for n in 0..messages {
            let delivery = exam.next_of(&subscription, &format!("message {n} of {name}")).await;
            exam.ok("an ack", delivery.ack()).await;
        }
    }
}

async fn check(exam: &Exam, table: &[(&str, &[usize])]) {
    let mut subscriptions = Vec::new();
    for (n, (pattern, _)) in table.iter().enumerate() {
        let spec = group(&format!("g{n}"), 16).filters(&[pattern]);
        subscriptions.push(exam.subscribe(spec).await);
    }
    for subject in SUBJECTS {
        exam.publish(on(subject, "x")).await;
    }
    for (n, (pattern, covered)) in table.iter().enumerate() {
        let mut got = BTreeSet::new();
        let want: BTreeSet<_> = covered.iter().map(|at| SUBJECTS[*at].to_owned()).collect();
        while got.len() < want.len() {
            let delivery =
                exam.next_of(&subscriptions[n], &format!("{pattern}: {want:?}, so far {got:?}")).await;
            let subject = delivery.message().subject.to_string();
            assert!(want.contains(&subject), "{pattern} does not cover {subject}");
            assert!(got.insert(subject), "{pattern} had it twice");
            exam.ack(delivery).await;
        }
        exam.settled(&format!("g{n}")).await;
    }
}

/// `orders.>` does not match `orders`, and tokens are whole.
async fn truth_table_within_a_topic(exam: Exam) {
    check(&exam, &WITHIN).await;
}

/// The first token may be a wildcard.
async fn truth_table_across_topics(exam: Exam) {
    check(&exam, &ACROSS).await;
}

/// A transport that stores by topic and cannot read several topics refuses a wildcard in the first token.
async fn a_wildcard_topic_is_refused(exam: Exam) {
    for (pattern, _) in ACROSS {
        let spec = group("g", 1).filters(&[pattern]);
        exam.refused(ErrorKind::Unsupported, pattern, exam.bus().subscribe(spec)).await;
    }
}

/// A subscription with several patterns receives a message that matches any of them, once.
async fn several_patterns_deliver_a_message_once(exam: Exam) {
    let spec = group("g", 16).filters(&["orders.>", "orders.placed.v1", "billing", "orders.*.v1"]);
    let subscription = exam.subscribe(spec).await;
    for subject in SUBJECTS {
        exam.publish(on(subject, "x")).await;
    }
    let mut got = BTreeSet::new();
    while got.len() < 5 {
        let delivery = exam.next(&subscription).await;
        assert!(got.insert(delivery.message().subject.to_string()), "{got:?}");
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// Patterns have the same meaning for a broadcast subscription.
async fn broadcast_takes_the_same_patterns(exam: Exam) {
    let spec = broadcast().filters(&["orders.placed.>", "billing"]);
    let subscription = exam.subscribe(spec).await;
    for subject in SUBJECTS {
        exam.publish(on(subject, "x")).await;
    }
    for _ in 0..3 {
        let subject = exam.next(&subscription).await.message().subject.to_string();
        assert!(
            ["orders.placed.v1", "orders.placed.v1.eu", "billing"].contains(&subject.as_str()),
            "{subject}"
        );
    }
}

/// A subscription without patterns is an error.
async fn a_subscription_without_patterns_is_refused(exam: Exam) {
    let mut spec = group("g", 1);
    spec.filters.clear();
    exam.refused(ErrorKind::Config, "no patterns", exam.bus().subscribe(spec)).await;
    exam.publish(message("harmless")).await;
}
