//! Cases for request and reply: one member answers, in one frame or several; timeouts and departures are
//! reported.

use std::time::{Duration, Instant};

use event_client::message::{Headers, Message};
use event_client::transport::{Frame, IncomingRequest, Replies, Serve, Transport};
use event_client::{Error, ErrorKind};
use tokio::sync::mpsc::Receiver;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{on, subject};

const ENOUGH: Duration = Duration::from_secs(60);

cases! {
    a_request_is_answered;
    another_handle_answers;
    an_error_travels_as_a_frame;
    no_responder_is_told_at_once;
    a_member_that_left_is_no_responder;
    a_call_right_after_the_last_member_left_does_not_wait;
    calls_do_not_wait_for_a_member_that_leaves;
    the_deadline_is_carried_to_the_server;
    a_passed_deadline_is_a_timeout;
    the_server_learns_that_the_deadline_passed;
    the_server_learns_that_the_caller_left;
    members_take_turns;
    a_busy_member_leaves_it_to_another;
    a_request_waits_for_a_busy_member;
    a_request_does_not_wait_beyond_its_deadline;
    requests_at_the_same_time_do_not_mix;
    subjects_of_one_member_are_kept_apart;
    a_request_is_no_event;
}

pub(crate) async fn serve(
    exam: &Exam,
    bus: &dyn Transport,
    subjects: &[&str],
    max_in_flight: usize,
) -> Receiver<IncomingRequest> {
    let subjects = subjects.iter().map(|name| subject(name)).collect();
    let spec = Serve::new("shop", subjects, max_in_flight);
    exam.ok("serve", bus.requests().serve(spec)).await
}

pub(crate) async fn call(exam: &Exam, request: Message) -> Replies {
    exam.ok("the call", exam.requests().call(request, ENOUGH)).await
}

/// Makes a call whose deadline soon passes; returns its replies, its start and its timeout. Where the first
/// call opens a connection, a busy machine may take longer than the timeout: then the timeout is raised.
async fn call_in_time(exam: &Exam, subject: &str) -> (Replies, Instant, Duration) {
    let mut within = Duration::from_millis(250);
    loop {
        within *= 2;
        let before = Instant::now();
        match exam.requests().call(on(subject, "x"), within).await {
            Ok(replies) => return (replies, before, within),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{error}"),
        }
    }
}

pub(crate) async fn incoming(exam: &Exam, requests: &mut Receiver<IncomingRequest>) -> IncomingRequest {
    exam.waits_for("a request at the server");
    requests.recv().await.expect("the server's receiver ended")
}

pub(crate) fn frame(text: &str, last: bool) -> Frame {
    Frame {
        headers: Headers::new(),
        content_type: "text/plain".into(),
        payload: text.to_owned().into(),
        last,
    }
}

async fn answer(exam: &Exam, mut request: IncomingRequest, text: &str) {
    exam.ok("the answer's confirmation", request.responder.send(frame(text, true))).await;
}

pub(crate) async fn reply(exam: &Exam, replies: &mut Replies) -> Result<Frame, Error> {
    exam.waits_for("a frame of the answer");
    replies.next().await.expect("the answer ended")
}

pub(crate) fn body(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.payload).into_owned()
}

/// One request gets one reply, and no frame follows it.
async fn a_request_is_answered(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let mut sent = on("shop.quote", "how much?");
    sent.headers.set("tenant", "größe").expect("a valid header");
    let mut replies = call(&exam, sent.clone()).await;
    let mut request = incoming(&exam, &mut server).await;
    assert_eq!(*request.message, sent);
    let mut sending = frame("42", true);
    sending.headers.set("currency", "€").expect("a valid header");
    exam.ok("the answer's confirmation", request.responder.send(sending.clone())).await;
    assert_eq!(reply(&exam, &mut replies).await.expect("a frame"), sending);
    exam.waits_for("the end of the answer");
    assert!(replies.next().await.is_none());
}

/// A responder on any handle can answer.
async fn another_handle_answers(exam: Exam) {
    let other = exam.another().await;
    let mut server = serve(&exam, other.as_ref(), &["shop.quote"], 1).await;
    let mut replies = call(&exam, on("shop.quote", "how much?")).await;
    let request = incoming(&exam, &mut server).await;
    answer(&exam, request, "42").await;
    assert_eq!(body(&reply(&exam, &mut replies).await.expect("a frame")), "42");
}

/// A typed error is a frame like any other: its status is in the headers, its details are in the bytes.
async fn an_error_travels_as_a_frame(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let mut replies = call(&exam, on("shop.quote", "x")).await;
    let mut request = incoming(&exam, &mut server).await;
    let mut sending = frame("{\"sku\":\"gone\"}", true);
    sending.content_type = "application/problem+json".into();
    sending.headers.set("status", "5").expect("a valid header");
    sending.headers.set("error", "not found").expect("a valid header");
    exam.ok("the answer's confirmation", request.responder.send(sending.clone())).await;
    assert_eq!(reply(&exam, &mut replies).await.expect("a frame"), sending);
}

/// When no member serves the subject, the call fails at once, not at its deadline.
async fn no_responder_is_told_at_once(exam: Exam) {
    let before = Instant::now();
    let call = exam.requests().call(on("shop.quote", "x"), Duration::from_secs(3600));
    exam.refused(ErrorKind::NoResponder, "a call without a responder", call).await;
    assert!(before.elapsed() < Duration::from_secs(10), "after {:?}", before.elapsed());
}

/// Requests that reach a member while it leaves are passed to another member or refused; their callers do not
/// wait until the deadline.
async fn calls_do_not_wait_for_a_member_that_leaves(exam: Exam) {
    let (leaving, other) = (exam.another().await, exam.another().await);
    let mut stays = serve(&exam, other.as_ref(), &["shop.quote"], 256).await;
    let answering = tokio::spawn(async move {
        while let Some(mut request) = stays.recv().await {
            drop(request.responder.send(frame("here", true)));
        }
    });
    for _ in 0..10 {
        let mut leaves = serve(&exam, leaving.as_ref(), &["shop.quote"], 256).await;
        let mut calls: Vec<_> = (0..32)
            .map(|_| {
                let bus = exam.bus().clone();
                tokio::spawn(async move {
                    let mut replies =
                        bus.requests().call(on("shop.quote", "x"), Duration::from_secs(600)).await?;
                    replies.next().await.expect("the answer ended").map(|frame| body(&frame))
                })
            })
            .collect();
        exam.waits_for("the first request at the member that leaves");
        drop(leaves.recv().await.expect("the server's receiver ended"));
        drop(leaves);
        let left = Instant::now();
        for call in calls.drain(..) {
            exam.waits_for("the end of a call");
            match call.await.expect("no panic") {
                Ok(text) => assert_eq!(text, "here"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        }
        // Far below the time after which a silent server is detected.
        assert!(left.elapsed() < Duration::from_secs(8), "after {:?}", left.elapsed());
    }
    answering.abort();
}

/// Dropping the receiver ends the service.
async fn a_member_that_left_is_no_responder(exam: Exam) {
    let server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    drop(server);
    loop {
        exam.waits_for("the departure to be known");
        match exam.requests().call(on("shop.quote", "x"), Duration::from_secs(2)).await {
            Err(error) if error.kind() == ErrorKind::NoResponder => return,
            // The request may have been sent before the departure was noticed.
            Err(error) => assert!(error.is_temporary(), "{error:?}"),
            Ok(mut replies) => {
                let end = replies.next().await;
                assert!(!matches!(end, Some(Ok(_))), "a reply from a member that has left: {end:?}");
            }
        }
    }
}

/// A call that reaches a service while its last member leaves fails long before its deadline.
async fn a_call_right_after_the_last_member_left_does_not_wait(exam: Exam) {
    for _ in 0..20 {
        drop(serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await);
        exam.waits_for("the end of a call without a member");
        let called = Instant::now();
        let ended = match exam.requests().call(on("shop.quote", "x"), ENOUGH).await {
            Ok(mut replies) => replies.next().await.expect("the answer ended"),
            Err(error) => Err(error),
        };
        let kind = ended.expect_err("no member can answer").kind();
        assert!(matches!(kind, ErrorKind::NoResponder | ErrorKind::Unavailable), "{kind:?}");
        assert!(called.elapsed() < Duration::from_secs(8), "after {:?}", called.elapsed());
    }
}

/// The responder receives the call's deadline.
async fn the_deadline_is_carried_to_the_server(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let within = Duration::from_secs(7);
    let replies = exam.ok("the call", exam.requests().call(on("shop.quote", "x"), within)).await;
    let request = incoming(&exam, &mut server).await;
    assert!(request.within <= within, "{:?}", request.within);
    assert!(request.within > Duration::ZERO, "{:?}", request.within);
    assert!(!request.responder.gone().is_cancelled());
    drop(replies);
}

/// Without a reply in time, the caller gets a timeout.
async fn a_passed_deadline_is_a_timeout(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let (mut replies, before, within) = call_in_time(&exam, "shop.quote").await;
    let _request = incoming(&exam, &mut server).await;
    let error = reply(&exam, &mut replies).await.expect_err("no reply was sent");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(before.elapsed() + Duration::from_millis(5) >= within, "after {:?}", before.elapsed());
}

/// The responder is notified that the deadline has passed, so that it can stop work whose result is no longer
/// needed.
async fn the_server_learns_that_the_deadline_passed(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let _replies = call_in_time(&exam, "shop.quote").await;
    let request = incoming(&exam, &mut server).await;
    exam.waits_for("the server to learn that the deadline passed");
    request.responder.gone().cancelled().await;
}

/// Dropping the replies notifies the responder.
async fn the_server_learns_that_the_caller_left(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let replies = call(&exam, on("shop.quote", "x")).await;
    let request = incoming(&exam, &mut server).await;
    assert!(!request.responder.gone().is_cancelled());
    drop(replies);
    exam.waits_for("the server to learn that the caller left");
    request.responder.gone().cancelled().await;
}

/// Members of a service share requests evenly.
async fn members_take_turns(exam: Exam) {
    let other = exam.another().await;
    let mut servers = [
        serve(&exam, exam.bus().as_ref(), &["shop.quote"], 4).await,
        serve(&exam, exam.bus().as_ref(), &["shop.quote"], 4).await,
        serve(&exam, other.as_ref(), &["shop.quote"], 4).await,
    ];
    let mut counts = [0; 3];
    for _ in 0..30 {
        let mut replies = call(&exam, on("shop.quote", "x")).await;
        exam.waits_for("the request at one of three members");
        let [a, b, c] = &mut servers;
        let (member, request) = tokio::select! {
            request = a.recv() => (0, request),
            request = b.recv() => (1, request),
            request = c.recv() => (2, request),
        };
        counts[member] += 1;
        answer(&exam, request.expect("a request"), "42").await;
        reply(&exam, &mut replies).await.expect("a frame");
    }
    // Even on average only: where members do not know each other's turns, the choice is random.
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
}

/// A member without free credit is skipped.
async fn a_busy_member_leaves_it_to_another(exam: Exam) {
    let mut busy = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let mut first = call(&exam, on("shop.quote", "first")).await;
    let working = incoming(&exam, &mut busy).await;
    let mut free = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    for _ in 0..3 {
        let mut replies = call(&exam, on("shop.quote", "next")).await;
        let request = incoming(&exam, &mut free).await;
        answer(&exam, request, "42").await;
        reply(&exam, &mut replies).await.expect("a frame");
    }
    answer(&exam, working, "done").await;
    assert_eq!(body(&reply(&exam, &mut first).await.expect("a frame")), "done");
}

/// A request beyond the credit waits.
async fn a_request_waits_for_a_busy_member(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let mut first = call(&exam, on("shop.quote", "first")).await;
    let working = incoming(&exam, &mut server).await;
    let bus = exam.bus().clone();
    let second = tokio::spawn(async move {
        let mut replies = bus.requests().call(on("shop.quote", "second"), ENOUGH).await?;
        replies.next().await.expect("an answer")
    });
    // This sleep gives an unwanted second request time to arrive.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(server.try_recv().is_err(), "more requests than the credit");
    answer(&exam, working, "done").await;
    reply(&exam, &mut first).await.expect("a frame");
    let request = incoming(&exam, &mut server).await;
    answer(&exam, request, "done too").await;
    exam.waits_for("the second answer");
    let frame = second.await.expect("no panic").expect("a frame");
    assert_eq!(body(&frame), "done too");
}

/// A request waits for a busy member no longer than its deadline.
async fn a_request_does_not_wait_beyond_its_deadline(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 1).await;
    let _first = call(&exam, on("shop.quote", "first")).await;
    let _working = incoming(&exam, &mut server).await;
    let before = Instant::now();
    exam.waits_for("the timeout of the second call");
    let error = match exam.requests().call(on("shop.quote", "second"), Duration::from_millis(400)).await {
        Err(error) => error,
        Ok(mut replies) => reply(&exam, &mut replies).await.expect_err("no member had free credit"),
    };
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(before.elapsed() < ENOUGH);
}

/// Each caller gets its own answer.
async fn requests_at_the_same_time_do_not_mix(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 8).await;
    let serving = tokio::spawn(async move {
        while let Some(mut request) = server.recv().await {
            tokio::spawn(async move {
                for last in [false, true] {
                    let mut frame = frame("", last);
                    frame.payload = request.message.payload.clone();
                    let _ = request.responder.send(frame).await;
                    tokio::task::yield_now().await;
                }
            });
        }
    });
    let calls = (0..40).map(|n| {
        let bus = exam.bus().clone();
        tokio::spawn(async move {
            let mut replies =
                bus.requests().call(on("shop.quote", n.to_string()), ENOUGH).await.expect("called");
            for _ in 0..2 {
                let frame = replies.next().await.expect("an answer").expect("a frame");
                assert_eq!(body(&frame), n.to_string());
            }
        })
    });
    exam.waits_for("40 answers");
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("a call failed");
    }
    serving.abort();
}

/// A member may serve several subjects, and receives no others.
async fn subjects_of_one_member_are_kept_apart(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["shop.quote", "shop.stock"], 4).await;
    for name in ["shop.quote", "shop.stock"] {
        let mut replies = call(&exam, on(name, "x")).await;
        let request = incoming(&exam, &mut server).await;
        assert_eq!(request.message.subject.as_str(), name);
        answer(&exam, request, "ok").await;
        reply(&exam, &mut replies).await.expect("a frame");
    }
    for name in ["shop", "shop.order", "shop.quote.v2"] {
        let call = exam.requests().call(on(name, "x"), ENOUGH);
        exam.refused(ErrorKind::NoResponder, name, call).await;
    }
}

/// Requests are not stored: no group receives one.
async fn a_request_is_no_event(exam: Exam) {
    let subscription = exam.subscribe(crate::message::group("g", 1)).await;
    let mut server = serve(&exam, exam.bus().as_ref(), &["orders.quote"], 1).await;
    let mut replies = call(&exam, on("orders.quote", "x")).await;
    let request = incoming(&exam, &mut server).await;
    answer(&exam, request, "ok").await;
    reply(&exam, &mut replies).await.expect("a frame");
    exam.publish(on("orders.placed", "an event")).await;
    let delivery = exam.next(&subscription).await;
    assert_eq!(delivery.message().subject.as_str(), "orders.placed");
}
