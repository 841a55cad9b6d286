//! Cases for replies in several frames: in order, with backpressure, and with an end that is always reported.

use std::time::Duration;

use event_client::ErrorKind;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::on;
use crate::requests::{body, call, frame, incoming, reply, serve};

cases! {
    several_frames_come_in_order;
    a_slow_reader_slows_the_sender;
    a_stream_may_end_with_an_error;
    a_server_that_lets_go_is_told;
    the_sender_of_a_stream_learns_that_the_caller_left;
    a_server_that_leaves_midway_is_told;
}

/// The chunks arrive in order, then the end.
async fn several_frames_come_in_order(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["chat.ask"], 1).await;
    let mut replies = call(&exam, on("chat.ask", "tell me")).await;
    let mut request = incoming(&exam, &mut server).await;
    let sender = tokio::spawn(async move {
        for n in 0..500 {
            request.responder.send(frame(&n.to_string(), n == 499)).await.expect("sent");
        }
    });
    for n in 0..500 {
        let frame = reply(&exam, &mut replies).await.expect("a frame");
        assert_eq!((body(&frame), frame.last), (n.to_string(), n == 499));
    }
    exam.waits_for("the end of the answer");
    assert!(replies.next().await.is_none());
    sender.await.expect("no panic");
}

/// Buffers are bounded: a slow reader blocks the sender, which loses no frame when it awaits its
/// confirmations.
async fn a_slow_reader_slows_the_sender(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["chat.ask"], 1).await;
    let mut replies = call(&exam, on("chat.ask", "tell me")).await;
    let mut request = incoming(&exam, &mut server).await;
    let (sent, progress) = tokio::sync::watch::channel(0);
    let sender = tokio::spawn(async move {
        for n in 0..3000 {
            request.responder.send(frame(&n.to_string(), n == 2999)).await.expect("sent");
            sent.send_replace(n);
        }
    });
    for n in 0..3000 {
        if n == 10 {
            tokio::time::sleep(Duration::from_millis(100)).await; // give the sender time to fill the buffers
            assert!(*progress.borrow() < 2999, "three thousand frames were accepted although none was read");
        }
        assert_eq!(body(&reply(&exam, &mut replies).await.expect("a frame")), n.to_string());
    }
    sender.await.expect("no panic");
}

/// An end that is an error is delivered after the chunks.
async fn a_stream_may_end_with_an_error(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["chat.ask"], 1).await;
    let mut replies = call(&exam, on("chat.ask", "tell me")).await;
    let mut request = incoming(&exam, &mut server).await;
    exam.ok("a chunk", request.responder.send(frame("chunk", false))).await;
    let mut failed = frame("out of tokens", true);
    failed.headers.set("status", "8").expect("a valid header");
    exam.ok("the error", request.responder.send(failed.clone())).await;
    assert_eq!(body(&reply(&exam, &mut replies).await.expect("a frame")), "chunk");
    assert_eq!(reply(&exam, &mut replies).await.expect("a frame"), failed);
    exam.waits_for("the end of the answer");
    assert!(replies.next().await.is_none());
}

/// A responder that is dropped before its last frame sends an error automatically.
async fn a_server_that_lets_go_is_told(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["chat.ask"], 1).await;
    for chunks in 0..2 {
        let mut replies = call(&exam, on("chat.ask", "tell me")).await;
        let mut request = incoming(&exam, &mut server).await;
        for _ in 0..chunks {
            exam.ok("a chunk", request.responder.send(frame("chunk", false))).await;
        }
        drop(request);
        for _ in 0..chunks {
            reply(&exam, &mut replies).await.expect("a frame");
        }
        let error = reply(&exam, &mut replies).await.expect_err("there was no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
}

/// A caller that drops its replies in the middle of a stream ends the work at the server.
async fn the_sender_of_a_stream_learns_that_the_caller_left(exam: Exam) {
    let mut server = serve(&exam, exam.bus().as_ref(), &["chat.ask"], 1).await;
    for _ in 0..20 {
        let mut replies = call(&exam, on("chat.ask", "tell me")).await;
        let mut request = incoming(&exam, &mut server).await;
        let sender = tokio::spawn(async move {
            let gone = request.responder.gone().clone();
            while !gone.is_cancelled() {
                tokio::select! {
                    _ = request.responder.send(frame("chunk", false)) => {}
                    () = gone.cancelled() => {}
                }
            }
        });
        reply(&exam, &mut replies).await.expect("a frame");
        drop(replies);
        exam.waits_for("the sender to learn that the caller left");
        sender.await.expect("no panic");
    }
}

/// The same when the responder's handle closes while a request is running.
async fn a_server_that_leaves_midway_is_told(exam: Exam) {
    let other = exam.another().await;
    let mut server = serve(&exam, other.as_ref(), &["chat.ask"], 1).await;
    let mut replies = call(&exam, on("chat.ask", "tell me")).await;
    let mut request = incoming(&exam, &mut server).await;
    exam.ok("a chunk", request.responder.send(frame("chunk", false))).await;
    exam.ok("close", other.close()).await;
    reply(&exam, &mut replies).await.expect("the chunk that was sent");
    let error = reply(&exam, &mut replies).await.expect_err("the responder's handle was closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}
