//! The outbound queue of a connection, which sends in order and never blocks.
//!
//! Messages go straight into the client's channel while it has room; otherwise they wait in this connection's queue.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message as NatsMessage, StatusCode, Subject as NatsSubject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::Link;
use super::pending_replies::{Awaited, PendingReplies};
use super::pub_ack::{Ack, Outgoing, PendingPublish};
use event_transport::Receipt;
use event_transport::confirm::Confirm;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::sync::lock;

/// Sends messages and matches replies to the callers that wait for them.
pub(super) struct Outbound {
    patience: Duration,
    line: Mutex<Line>,
    grown: Notify,
    replies: PendingReplies,
    closing: CancellationToken,
}

/// The client's channel, and the messages that wait for room in it.
struct Line {
    client: Client,
    queue: VecDeque<OutboundMessage>,
}

impl Outbound {
    pub(super) fn new(client: Client, patience: Duration) -> Arc<Self> {
        let replies = PendingReplies::new(format!("{}.", client.new_inbox()));
        Arc::new(Self {
            patience,
            line: Mutex::new(Line { client, queue: VecDeque::new() }),
            grown: Notify::new(),
            replies,
            closing: CancellationToken::new(),
        })
    }

    /// Subscribes to the replies of the server.
    pub(super) async fn subscribe(&self) -> Result<Subscriber> {
        let client = self.line().client.clone();
        client
            .subscribe(format!("{}*", self.replies.inbox))
            .await
            .map_err(|error| Error::new(ErrorKind::Unavailable, "no inbox for confirmations").because(error))
    }

    /// Reads replies. Each message for whose publish there was no responder goes to `resend`.
    pub(super) async fn read_replies(
        self: Arc<Self>,
        mut replies: Subscriber,
        resend: impl Fn(Outgoing),
        closed: CancellationToken,
    ) {
        let mut answers = Vec::new();
        loop {
            let message = tokio::select! {
                message = replies.next() => message,
                () = closed.cancelled() => return,
            };
            let Some(message) = message else { return };
            answers.extend(self.confirmed(message, &resend));
            while let Some(Some(message)) = replies.next().now_or_never() {
                answers.extend(self.confirmed(message, &resend));
            }
            answers.drain(..).rev().for_each(|(answer, result): (PendingPublish, _)| answer.send(result));
        }
    }

    /// Sends the messages that wait for room in the client's channel.
    pub(super) async fn drain(self: Arc<Self>, closed: CancellationToken) {
        tokio::select! { () = self.move_on() => {}, () = closed.cancelled() => {} }
    }

    /// Fails pending replies whose deadline has passed, or whose subject the server denies.
    pub(super) fn watch_deadlines(
        self: Arc<Self>,
        link: Link,
        closed: CancellationToken,
    ) -> impl Future<Output = ()> {
        let mut denied = link.denied.subscribe();
        async move {
            loop {
                tokio::select! {
                    () = self.replies.until_deadline() => {
                        self.replies.expire(|subject| link.no_answer(subject, self.patience));
                    }
                    denied = denied.recv() => if let Ok(denied) = denied {
                        self.replies.fail(|subject| subject == denied.subject, || denied.error());
                    },
                    () = closed.cancelled() => return,
                }
            }
        }
    }

    /// Sends without waiting, in the order of the calls.
    pub(super) fn send(&self, letter: OutboundMessage) {
        let mut line = self.line();
        let Line { client, queue } = &mut *line;
        // Unconstrained: the result must depend on the channel, not on this task's cooperative budget.
        let mut room = pin!(tokio::task::unconstrained(poll_fn(|cx| client.poll_ready_unpin(cx))));
        if queue.is_empty()
            && let Poll::Ready(ready) = room.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            if ready.is_ok() {
                // The only possible error is the size, which was checked before.
                let _ = client.start_send_unpin(letter);
            }
            return;
        }
        queue.push_back(letter);
        drop(line);
        self.grown.notify_one();
    }

    /// Sends a message without headers, such as an acknowledgement.
    pub(super) fn send_bare(&self, subject: NatsSubject, reply: Option<NatsSubject>, payload: Bytes) {
        self.send(OutboundMessage { subject, reply, payload, headers: None });
    }

    /// Sends a reply that has headers and no payload.
    pub(super) fn answer(&self, subject: NatsSubject, headers: HeaderMap) {
        self.send(OutboundMessage { subject, reply: None, payload: Bytes::new(), headers: Some(headers) });
    }

    /// Publishes an internal message of this library into a stream.
    pub(super) fn store(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Confirm<Receipt> {
        let (answer, confirm) = PendingPublish::free();
        let subject = NatsSubject::from(subject);
        let until = Instant::now() + self.patience;
        let reply = self.replies.add(subject.clone(), Awaited::Stored(answer, None), until);
        self.send(OutboundMessage { subject, reply: Some(reply), headers: Some(headers), payload });
        confirm
    }

    /// Sends a request in order; resolves to its reply, or to `None` if the server reported no responders.
    pub(super) fn ask(
        &self,
        subject: NatsSubject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        until: Instant,
    ) -> Confirm<Option<NatsMessage>> {
        let (answer, confirm) = Confirm::channel();
        let reply = Some(self.replies.add(subject.clone(), Awaited::Word(answer), until));
        self.send(OutboundMessage { subject, reply, payload, headers });
        confirm
    }

    /// Publishes a user's message into a stream; `answer` receives the receipt.
    pub(super) fn publish(
        &self,
        subject: NatsSubject,
        headers: HeaderMap,
        message: Message,
        answer: PendingPublish,
        deadline: Instant,
    ) {
        let payload = message.payload.clone();
        let reply =
            self.replies.add(subject.clone(), Awaited::Stored(answer, Some(message.into())), deadline);
        self.send(OutboundMessage { subject, reply: Some(reply), headers: Some(headers), payload });
    }

    /// Reads a reply. Returns the publisher to answer and its receipt, unless the reply was handled here.
    fn confirmed(
        &self,
        reply: NatsMessage,
        resend: &impl Fn(Outgoing),
    ) -> Option<(PendingPublish, Result<Receipt>)> {
        let waiting = self.replies.take(&reply, self.is_closing())?;
        let nobody = reply.status == Some(StatusCode::NO_RESPONDERS);
        let (answer, message) = match waiting.answer {
            Awaited::Word(answer) => {
                let _ = answer.send(Ok((!nobody).then_some(reply)));
                return None;
            }
            Awaited::Stored(answer, message) => (answer, message),
        };
        let result = if nobody {
            if let Some(message) = message {
                // No responders: no stream has the subject, or JetStream is not ready after a restart.
                resend(Outgoing { message: *message, answer, deadline: waiting.deadline });
                return None;
            }
            Err(Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment"))
        } else {
            Ack::receipt(&reply.payload)
        };
        Some((answer, result.map_err(|error| error.with("nats_subject", waiting.subject))))
    }

    /// Sends the queued messages in order as the channel gets room.
    async fn move_on(&self) {
        loop {
            poll_fn(|cx| {
                let mut line = self.line();
                let Line { client, queue } = &mut *line;
                while !queue.is_empty() {
                    match client.poll_ready_unpin(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(ready) => {
                            let letter = queue.pop_front().expect("not empty");
                            if ready.is_ok() {
                                let _ = client.start_send_unpin(letter);
                            }
                        }
                    }
                }
                Poll::Ready(())
            })
            .await;
            self.grown.notified().await;
        }
    }

    /// Refuses further publishes of users.
    pub(super) fn stop_taking(&self) {
        self.closing.cancel();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub(super) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Waits until no reply is pending.
    pub(super) async fn idle(&self) {
        self.replies.idle().await;
    }

    /// Fails every pending reply, and every later one, with [`ErrorKind::Closed`].
    pub(super) fn abandon(&self) {
        self.replies.end();
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }
}
