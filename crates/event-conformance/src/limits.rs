//! Bounds: credit, payload, and what a refusal must not harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_client::ErrorKind;
use event_client::transport::Serve;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, message, subject, text};

cases! {
    credit_is_never_exceeded;
    credit_counts_what_waits_untaken;
    credit_comes_back_with_every_settlement;
    the_largest_message_fits_and_one_byte_more_is_refused;
    a_refused_message_harms_nothing_else;
    requests_have_the_same_limit;
    a_lease_of_nothing_is_refused;
}

/// No more unsettled deliveries at a time than asked for.
async fn credit_is_never_exceeded(exam: Exam) {
    let subscription = exam.subscribe(group("g", 5)).await;
    for n in 0..100 {
        exam.publish(message(n.to_string())).await;
    }
    let (held, most, done) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..12 {
        let (subscription, held, most, done) =
            (subscription.clone(), held.clone(), most.clone(), done.clone());
        tokio::spawn(async move {
            while let Some(delivery) = subscription.next().await {
                let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::task::yield_now().await;
                held.fetch_sub(1, Ordering::SeqCst);
                if delivery.ack().await.is_err() {
                    return;
                }
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    loop {
        let status = exam.status("g").await;
        assert!(status.in_flight <= 5, "{status:?}");
        if status.waiting + status.in_flight == 0 {
            break;
        }
        exam.waits_for(format!("100 acks, {} so far", done.load(Ordering::SeqCst)));
        tokio::task::yield_now().await;
    }
    assert!(most.load(Ordering::SeqCst) <= 5, "{most:?} at a time");
}

/// Prefetch is part of the credit: the rest waits where another member can have it.
async fn credit_counts_what_waits_untaken(exam: Exam) {
    let greedy = exam.subscribe(group("g", 3)).await;
    for n in 0..10 {
        exam.publish(message(n.to_string())).await;
    }
    exam.until("g", "the credit to be used", |status| status.in_flight == 3).await;
    let status = exam.status("g").await;
    assert_eq!((status.in_flight, status.waiting), (3, 7));
    let other = exam.subscribe(group("g", 7)).await;
    for _ in 0..7 {
        exam.ack(exam.next_of(&other, "what is beyond the first member's credit").await).await;
    }
    assert_eq!(exam.status("g").await.in_flight, 3);
    drop(greedy);
}

/// Ack, retry, reject, release and drop all give the slot back.
async fn credit_comes_back_with_every_settlement(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    for n in 0..5 {
        exam.publish(message(n.to_string())).await;
    }
    exam.ack(exam.next(&subscription).await).await;
    exam.ok("retry", exam.next(&subscription).await.retry(Duration::from_secs(600), "busy")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(crate::message::permanent("no"))).await;
    exam.ok("release", exam.next(&subscription).await.release()).await;
    drop(exam.next(&subscription).await);
    for _ in 0..2 {
        exam.ack(exam.next_of(&subscription, "a delivery after all five ways to settle").await).await;
    }
}

fn of_size(bytes: usize) -> event_client::message::Message {
    let mut message = message("");
    message.payload = vec![b'x'; bytes - message.size()].into();
    assert_eq!(message.size(), bytes);
    message
}

/// Exactly `max_payload` is taken; a byte more is refused as too large.
async fn the_largest_message_fits_and_one_byte_more_is_refused(exam: Exam) {
    let most = exam.can().max_payload;
    let subscription = exam.subscribe(group("g", 1)).await;
    let sent = of_size(most);
    exam.publish(sent.clone()).await;
    let delivery = exam.next(&subscription).await;
    assert!(delivery.message().payload == sent.payload, "the largest message came back changed");
    exam.ack(delivery).await;
    let error =
        exam.refused(ErrorKind::TooLarge, "a byte too many", exam.bus().publish(of_size(most + 1))).await;
    assert!(error.to_string().contains(&most.to_string()), "the error does not name the limit: {error}");
    exam.refused(ErrorKind::TooLarge, "far too large", exam.bus().publish(of_size(most * 4))).await;
}

/// Others in the same window go their way.
async fn a_refused_message_harms_nothing_else(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let too_large = of_size(exam.can().max_payload + 1);
    let confirms = [
        exam.bus().publish(message("before")),
        exam.bus().publish(too_large),
        exam.bus().publish(message("after")),
    ];
    let mut results = Vec::new();
    for confirm in confirms {
        exam.waits_for("a confirmation or refusal");
        results.push(confirm.await.is_ok());
    }
    assert_eq!(results, [true, false, true]);
    for want in ["before", "after"] {
        let delivery = exam.next(&subscription).await;
        assert_eq!(text(&delivery), want);
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// A request that is too large is refused before anybody gets it.
async fn requests_have_the_same_limit(exam: Exam) {
    let spec = Serve { service: "s".into(), subjects: vec![subject("orders.placed.v1")], credit: 1 };
    let mut incoming = exam.ok("serve", exam.requests().serve(spec)).await;
    let too_large = of_size(exam.can().max_payload + 1);
    let call = exam.requests().call(too_large, Duration::from_secs(5));
    exam.refused(ErrorKind::TooLarge, "a request", call).await;
    assert!(incoming.try_recv().is_err(), "the server got it");
}

/// A lease must last.
async fn a_lease_of_nothing_is_refused(exam: Exam) {
    let spec = group("g", 1).lease(Duration::ZERO);
    exam.refused(ErrorKind::Config, "no lease", exam.bus().subscribe(spec)).await;
}
