//! Members of a group share its messages.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, message, text};

cases! {
    one_member_handles_each_message;
    members_work_at_the_same_time;
    clones_of_a_subscription_share_it;
    a_leaving_member_leaves_its_share;
}

/// A message reaches one member of each group.
async fn one_member_handles_each_message(exam: Exam) {
    let other = exam.another().await;
    let first = exam.subscribe(group("g", 4)).await;
    let second = exam.ok("the second member", other.subscribe(group("g", 4))).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let members: Vec<_> = [first, second]
        .into_iter()
        .map(|subscription| {
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Some(delivery) = subscription.next().await {
                    seen.lock().expect("not poisoned").push(text(&delivery));
                    delivery.ack().await.expect("acknowledged");
                }
            })
        })
        .collect();
    for n in 0..200 {
        exam.publish(message(n.to_string())).await;
    }
    exam.settled("g").await;
    let seen = seen.lock().expect("not poisoned").clone();
    assert_eq!(seen.len(), 200, "some came twice");
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 200);
    members.iter().for_each(|member| member.abort());
}

/// While one member holds a message another gets the next one.
async fn members_work_at_the_same_time(exam: Exam) {
    let other = exam.another().await;
    let first = exam.subscribe(group("g", 1)).await;
    let second = exam.ok("the second member", other.subscribe(group("g", 1))).await;
    exam.publish(message("a")).await;
    exam.publish(message("b")).await;
    let held = exam.next_of(&first, "a message for the first member").await;
    let also = exam.next_of(&second, "a message for the second member").await;
    let both: HashSet<_> = [text(&held), text(&also)].into();
    assert_eq!(both, HashSet::from(["a".into(), "b".into()]));
    exam.ack(held).await;
    exam.ack(also).await;
}

/// Clones share one subscription: each delivery goes to one of them.
async fn clones_of_a_subscription_share_it(exam: Exam) {
    let one = exam.subscribe(group("g", 2)).await;
    let two = one.clone();
    exam.publish(message("a")).await;
    exam.publish(message("b")).await;
    let (a, b) = (exam.next(&one).await, exam.next(&two).await);
    assert_ne!(text(&a), text(&b));
    exam.ack(a).await;
    exam.ack(b).await;
    exam.settled("g").await;
}

/// Messages that a leaving member has not settled go to the other members.
async fn a_leaving_member_leaves_its_share(exam: Exam) {
    let leaving = exam.subscribe(group("g", 4)).await;
    for n in 0..4 {
        exam.publish(message(n.to_string())).await;
    }
    let taken = exam.next(&leaving).await;
    let staying = exam.subscribe(group("g", 4)).await;
    drop(taken);
    drop(leaving);
    let mut seen = HashSet::new();
    for _ in 0..4 {
        let delivery = exam.next_of(&staying, "the leaving member's delivery").await;
        assert_eq!(delivery.info().attempt, 1, "a release is not an attempt");
        seen.insert(text(&delivery));
        exam.ack(delivery).await;
    }
    assert_eq!(seen.len(), 4);
}
