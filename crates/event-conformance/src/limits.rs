//! Cases for bounds: credit and payload size, and the effects that a refusal must not have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_client::ErrorKind;
use event_client::confirm::Confirm;
use event_client::transport::{Frame, IncomingRequest, Replies, Serve};
use tokio::sync::mpsc::Receiver;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, message, on, subject, text};
use crate::requests::{body, frame, incoming, reply, serve};

cases! {
    credit_is_never_exceeded;
    credit_counts_what_waits_untaken;
    credit_comes_back_with_every_settlement;
    the_largest_message_fits_and_one_byte_more_is_refused;
    a_refused_message_harms_nothing_else;
    requests_have_the_same_limit;
    the_largest_answer_fits_and_one_byte_more_is_a_status_at_once;
    a_chunk_that_is_too_large_ends_the_answer_with_a_status;
    an_answer_that_is_too_large_harms_no_other;
    a_lease_of_nothing_is_refused;
}

/// The number of unsettled deliveries never exceeds `max_in_flight`.
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

/// Prefetched deliveries count against the credit: the remaining messages stay available to other members.
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
        exam.ack(exam.next_of(&other, "a message beyond the first member's credit").await).await;
    }
    assert_eq!(exam.status("g").await.in_flight, 3);
    drop(greedy);
}

/// Ack, retry, reject, release and drop each free the slot.
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

/// A message of exactly `max_payload` is accepted; one with a byte more is refused as too large.
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

/// A refused message does not affect other messages in the same window.
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

/// A request that is too large is refused before a responder receives it.
async fn requests_have_the_same_limit(exam: Exam) {
    let spec = Serve::new("s", vec![subject("orders.placed.v1")], 1);
    let mut served = exam.ok("serve", exam.requests().serve(spec)).await;
    let too_large = of_size(exam.can().max_payload + 1);
    let call = exam.requests().call(too_large, Duration::from_secs(5));
    exam.refused(ErrorKind::TooLarge, "a request", call).await;
    assert!(served.try_recv().is_err(), "the responder received it");
}

/// Makes a call with a timeout of an hour; returns the request at the responder and the caller's replies.
async fn asked(
    exam: &Exam,
    serving: &mut Receiver<IncomingRequest>,
    subject: &str,
) -> (IncomingRequest, Replies) {
    let call = exam.requests().call(on(subject, "?"), Duration::from_secs(3600));
    let replies = exam.ok("the call", call).await;
    (incoming(exam, serving).await, replies)
}

/// Returns a frame of exactly `bytes` bytes, as a message's size is counted.
fn frame_of(bytes: usize, last: bool) -> Frame {
    let mut frame = frame("", last);
    frame.payload = vec![b'x'; bytes - frame.size()].into();
    frame
}

/// Checks that both ends are notified of a reply that is too large: the responder by an error, the caller by
/// a status.
async fn told(exam: &Exam, sent: Confirm<()>, replies: &mut Replies) {
    let most = exam.can().max_payload.to_string();
    let error = exam.refused(ErrorKind::TooLarge, "a byte too many", sent).await;
    assert!(error.to_string().contains(&most), "the error does not name the limit: {error}");
    let last = reply(exam, replies).await.expect("a status");
    assert!(last.last && last.payload.is_empty(), "the status ends the answer");
    assert_eq!(last.headers.get("status"), Some("RESOURCE_EXHAUSTED"));
    let text = last.headers.get("status-message").unwrap_or_default();
    assert!(text.contains(&most), "the status does not name the limit: {text}");
    exam.waits_for("the end of the answer");
    assert!(replies.next().await.is_none());
}

/// A reply of exactly `max_payload` is delivered; a byte more becomes a status, at once.
async fn the_largest_answer_fits_and_one_byte_more_is_a_status_at_once(exam: Exam) {
    let most = exam.can().max_payload;
    // Replies may take another path within one process than from another handle.
    let other = exam.another().await;
    for (server, subject) in [(exam.bus().as_ref(), "orders.quote"), (other.as_ref(), "orders.price")] {
        let mut serving = serve(&exam, server, &[subject], 4).await;
        let (mut request, mut replies) = asked(&exam, &mut serving, subject).await;
        let sent = frame_of(most, true);
        exam.ok("the largest answer", request.responder.send(sent.clone())).await;
        assert!(
            reply(&exam, &mut replies).await.expect("a frame") == sent,
            "the largest answer came changed"
        );
        for bytes in [most + 1, most * 3] {
            let (mut request, mut replies) = asked(&exam, &mut serving, subject).await;
            let too_large = request.responder.send(frame_of(bytes, true));
            told(&exam, too_large, &mut replies).await;
        }
    }
}

/// The chunks before the one that is too large have arrived, and no more can follow.
async fn a_chunk_that_is_too_large_ends_the_answer_with_a_status(exam: Exam) {
    let mut serving = serve(&exam, exam.bus().as_ref(), &["orders.quote"], 4).await;
    let (mut request, mut replies) = asked(&exam, &mut serving, "orders.quote").await;
    exam.ok("a chunk", request.responder.send(frame("one", false))).await;
    assert_eq!(body(&reply(&exam, &mut replies).await.expect("a frame")), "one");
    let too_large = request.responder.send(frame_of(exam.can().max_payload + 1, false));
    told(&exam, too_large, &mut replies).await;
    drop(request.responder.send(frame("two", true)));
}

/// Another request of the same service, made at the same time, is answered.
async fn an_answer_that_is_too_large_harms_no_other(exam: Exam) {
    let mut serving = serve(&exam, exam.bus().as_ref(), &["orders.quote"], 4).await;
    let (mut first, mut replies) = asked(&exam, &mut serving, "orders.quote").await;
    let (mut second, mut others) = asked(&exam, &mut serving, "orders.quote").await;
    let too_large = first.responder.send(frame_of(exam.can().max_payload + 1, true));
    told(&exam, too_large, &mut replies).await;
    exam.ok("the second answer", second.responder.send(frame("fine", true))).await;
    assert_eq!(body(&reply(&exam, &mut others).await.expect("a frame")), "fine");
}

/// A lease of zero is refused.
async fn a_lease_of_nothing_is_refused(exam: Exam) {
    let spec = group("g", 1).lease(Duration::ZERO);
    exam.refused(ErrorKind::Config, "no lease", exam.bus().subscribe(spec)).await;
}
