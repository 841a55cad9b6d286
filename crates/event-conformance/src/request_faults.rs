//! Cases for requests while servers and networks fail: every call ends in time, and later calls work again
//! automatically.

use std::time::{Duration, Instant};

use event_client::{Error, ErrorKind};

use crate::case::cases;
use crate::exam::Exam;
use crate::faults::passes;
use crate::message::on;
use crate::requests::{body, frame, serve};

cases! {
    requests_fail_without_a_server_and_work_again.own_server().within(120);
    requests_work_again_after_a_cut.own_server().within(120);
    a_member_that_leaves_over_a_slow_network_loses_no_call.own_server().within(120);
}

/// A call fails in time while there is no broker; a responder serves again when the broker is back.
async fn requests_fail_without_a_server_and_work_again(exam: Exam) {
    let _serving = echo(&exam).await;
    asked(&exam, "before").await;
    exam.ok("a kill", exam.server().kill()).await;
    exam.waits_for("the answer to a call without a server");
    let error = ask(&exam, "lost").await.expect_err("there is no server");
    assert!(passes(&error), "{error:?}");
    exam.ok("the server to start", exam.server().start()).await;
    asked(&exam, "after").await;
}

async fn requests_work_again_after_a_cut(exam: Exam) {
    let _serving = echo(&exam).await;
    asked(&exam, "before").await;
    for round in 0..3 {
        exam.server().cut();
        asked(&exam, &format!("after cut {round}")).await;
    }
}

/// Requests that the broker sends to a member until it learns that the member has left are passed to another
/// member, or their callers get an error.
async fn a_member_that_leaves_over_a_slow_network_loses_no_call(exam: Exam) {
    let mut stays = serve(&exam, exam.bus().as_ref(), &["shop.quote"], 256).await;
    let _serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(mut request) = stays.recv().await {
            drop(request.responder.send(frame("here", true)));
        }
    }));
    let leaving = exam.another().await;
    let mut leaves = Some(serve(&exam, leaving.as_ref(), &["shop.quote"], 256).await);
    exam.server().slow(Duration::from_millis(100));
    let mut calls = Vec::new();
    for n in 0..64 {
        let caller = exam.clone();
        calls.push(tokio::spawn(async move {
            let request = on("shop.quote", "x");
            let mut replies = caller.requests().call(request, Duration::from_secs(600)).await?;
            replies.next().await.expect("the answer ended").map(|frame| body(&frame))
        }));
        if n == 32 {
            exam.waits_for("a request at the member that leaves");
            let mut member = leaves.take().expect("it leaves once");
            drop(member.recv().await.expect("the server's receiver ended"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = Instant::now();
    for call in calls {
        exam.waits_for("the end of a call");
        match call.await.expect("no panic") {
            Ok(text) => assert_eq!(text, "here"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    // Far below the time after which a silent server is detected.
    assert!(left.elapsed() < Duration::from_secs(8), "after {:?}", left.elapsed());
}

/// Answers requests with their own bytes, until it is dropped.
async fn echo(exam: &Exam) -> tokio_util::task::AbortOnDropHandle<()> {
    let mut requests = serve(exam, exam.bus().as_ref(), &["shop.quote"], 4).await;
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(mut request) = requests.recv().await {
            let mut answer = frame("", true);
            answer.payload = request.message.payload.clone();
            // A caller may have ended with its connection.
            let _ = request.responder.send(answer).await;
        }
    }))
}

async fn ask(exam: &Exam, text: &str) -> Result<String, Error> {
    let mut replies = exam.requests().call(on("shop.quote", text), Duration::from_secs(2)).await?;
    Ok(body(&replies.next().await.expect("an answer is a frame or an error")?))
}

/// Repeats a call until it is answered: for a moment there may be no responder.
async fn asked(exam: &Exam, text: &str) {
    loop {
        exam.waits_for(format!("the answer to {text:?}"));
        match ask(exam, text).await {
            Ok(answer) => return assert_eq!(answer, text),
            Err(error) => assert!(passes(&error) || error.kind() == ErrorKind::NoResponder, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
