//! Cases for leases: a delivery is leased from the fetch, the lease is renewed while the delivery waits or
//! runs, and a settlement after a lost lease fails.

use std::time::{Duration, Instant};

use event_client::ErrorKind;
use event_client::transport::Start;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{SHORT, With, group, group_name, message, text, vanish};

cases! {
    a_lease_is_renewed_while_the_handler_works;
    a_lease_is_renewed_while_a_delivery_waits_untaken;
    a_lease_is_renewed_after_stop;
    in_progress_holds_a_lease_that_nobody_renews;
    in_progress_is_confirmed_while_it_is_ours;
    a_lost_lease_is_told;
    a_second_opinion_does_not_settle_for_the_heir;
}

/// Waits three leases, in which a lease without renewal would have ended; then shows that the other member
/// received none of the held messages: the marker is its first delivery.
async fn nothing_moves_for(exam: &Exam, lease: Duration, other: &event_client::subscription::Subscription) {
    exam.waits_for("three leases to pass");
    let until = Instant::now() + lease * 3;
    while Instant::now() < until {
        if let Ok(Some(delivery)) = tokio::time::timeout(lease / 4, other.next()).await {
            panic!("{} was taken away while its lease was renewed", text(&delivery));
        }
    }
    exam.publish(message("marker")).await;
    let delivery = exam.next_of(other, "the marker").await;
    assert_eq!(text(&delivery), "marker");
    exam.ack(delivery).await;
}

/// A slow handler keeps its message: the transport renews the lease automatically.
async fn a_lease_is_renewed_while_the_handler_works(exam: Exam) {
    let other = exam.another().await;
    let slow = exam.subscribe(group("g", 1).lease(SHORT)).await;
    exam.publish(message("slow")).await;
    let held = exam.next(&slow).await;
    let idle = exam.ok("the other member", other.subscribe(group("g", 1).lease(SHORT))).await;
    nothing_moves_for(&exam, SHORT, &idle).await;
    exam.ack(held).await;
    exam.settled("g").await;
}

/// The lease starts at the fetch, so the lease of a delivery in the buffer is renewed too.
async fn a_lease_is_renewed_while_a_delivery_waits_untaken(exam: Exam) {
    let other = exam.another().await;
    let busy = exam.subscribe(group("g", 3).lease(SHORT)).await;
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
    }
    let held = exam.next(&busy).await;
    exam.until("g", "all to be fetched", |status| status.in_flight == 3).await;
    let idle = exam.ok("the other member", other.subscribe(group("g", 1).lease(SHORT))).await;
    nothing_moves_for(&exam, SHORT, &idle).await;
    exam.ack(held).await;
    for _ in 0..2 {
        let delivery = exam.next(&busy).await;
        assert_eq!(delivery.info().attempt, 1);
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// A stopped subscription fetches no more, but the deliveries taken from it stay leased.
async fn a_lease_is_renewed_after_stop(exam: Exam) {
    let other = exam.another().await;
    let stopped = exam.subscribe(group("g", 1).lease(SHORT)).await;
    exam.publish(message("running")).await;
    let held = exam.next(&stopped).await;
    stopped.stop();
    let idle = exam.ok("the other member", other.subscribe(group("g", 1).lease(SHORT))).await;
    nothing_moves_for(&exam, SHORT, &idle).await;
    exam.ack(held).await;
    exam.settled("g").await;
}

/// A handler that runs longer than its subscription can renew the lease itself.
async fn in_progress_holds_a_lease_that_nobody_renews(exam: Exam) {
    let lease = SHORT * 2;
    let other = exam.another().await;
    let gone = exam.subscribe(group("g", 1).lease(lease)).await;
    exam.publish(message("running")).await;
    let held = exam.next(&gone).await;
    drop(gone);
    let idle = exam.ok("the other member", other.subscribe(group("g", 1).lease(lease))).await;
    let until = Instant::now() + lease * 2;
    while Instant::now() < until {
        exam.ok("a renewal", held.in_progress()).await;
        if let Ok(Some(delivery)) = tokio::time::timeout(lease / 8, idle.next()).await {
            panic!("{} was taken away while its lease was renewed", text(&delivery));
        }
    }
    exam.ack(held).await;
    exam.settled("g").await;
}

/// `in_progress` is confirmed and changes nothing else.
async fn in_progress_is_confirmed_while_it_is_ours(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(message("running")).await;
    let held = exam.next(&subscription).await;
    for _ in 0..3 {
        exam.ok("a renewal", held.in_progress()).await;
    }
    exam.ack(held).await;
    exam.settled("g").await;
}

/// Settling a delivery after its lease was lost to another consumer returns an error.
async fn a_lost_lease_is_told(exam: Exam) {
    let other = exam.another().await;
    let slow = exam.ok("the first member", other.subscribe(group("g", 1).lease(SHORT))).await;
    exam.publish(message("a")).await;
    let late = exam.next(&slow).await;
    drop(slow); // the handler outlives its subscription and renews nothing
    let heir = exam.subscribe(group("g", 1).lease(SHORT)).await;
    let theirs = exam.next_of(&heir, "the slow consumer's lost delivery").await;
    assert_eq!(theirs.info().attempt, 2);
    exam.refused(ErrorKind::LeaseLost, "a renewal after the lease was lost", late.in_progress()).await;
    exam.refused(ErrorKind::LeaseLost, "an ack after the lease was lost", late.ack()).await;
    exam.ack(theirs).await;
    exam.settled("g").await;
}

/// A late settlement by the first consumer does not affect the second consumer's delivery.
async fn a_second_opinion_does_not_settle_for_the_heir(exam: Exam) {
    let slow = exam.subscribe(group("g", 1)).await;
    exam.publish(message("a")).await;
    let late = exam.next(&slow).await;
    exam.ok("seek", exam.admin().seek(group_name("g"), Start::New)).await;
    exam.publish(message("b")).await;
    exam.refused(ErrorKind::LeaseLost, "an ack after the group was moved", late.ack()).await;
    let next = exam.next(&slow).await;
    assert_eq!(text(&next), "b");
    vanish(slow, Vec::new());
    exam.ack(next).await;
    exam.settled("g").await;
}
