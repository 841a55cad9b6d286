//! The outbound queue of a connection, which sends in order and never blocks, and the table of pending replies.
//!
//! One inbox receives all replies of a connection; the last token of a reply's subject is its index in the table.
//! Messages go straight into the client's channel while it has room; otherwise they wait in this connection's queue.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message as NatsMessage, StatusCode, Subject as NatsSubject};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::pub_ack::{Ack, PendingPublish};
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::transport::Receipt;

/// Sends messages and matches replies to the callers that wait for them.
pub(super) struct Outbound {
    inbox: String,
    patience: Duration,
    line: Mutex<Line>,
    grown: Notify,
    waiting: Mutex<Table>,
    /// Wakes the deadline task: a deadline was added before the one it waits for.
    sooner: Notify,
    /// Notified while closing, when no reply is pending any more.
    done: Notify,
    closing: CancellationToken,
}

/// The client's channel, and the messages that wait for room in it.
struct Line {
    client: Client,
    queue: VecDeque<OutboundMessage>,
}

#[derive(Default)]
struct Table {
    /// The connection has ended: replies are no longer read, nor deadlines watched.
    ended: bool,
    entries: Slab<Waiting>,
    generation: u32,
    /// The deadline that the deadline task waits for.
    watched: Option<Instant>,
    /// Deadline, index and generation, the earliest deadline first.
    deadlines: VecDeque<(Instant, usize, u32)>,
}

/// A pending reply.
struct Waiting {
    generation: u32,
    subject: NatsSubject,
    answer: Awaited,
    deadline: Instant,
}

/// The kind of reply that a caller waits for.
enum Awaited {
    /// The PubAck of a publish; the message is kept, to be sent again if the server was not ready for it.
    Stored(PendingPublish, Option<Box<Message>>),
    /// Any reply; `None` if the server reported no responders.
    Word(Answer<Option<NatsMessage>>),
}

impl Awaited {
    fn fail(self, error: Error) {
        match self {
            Self::Stored(answer, _) => answer.send(Err(error)),
            Self::Word(answer) => drop(answer.send(Err(error))),
        }
    }
}

impl Outbound {
    pub(super) fn new(client: Client, patience: Duration) -> Arc<Self> {
        let inbox = format!("{}.", client.new_inbox());
        Arc::new(Self {
            inbox,
            patience,
            line: Mutex::new(Line { client, queue: VecDeque::new() }),
            grown: Notify::new(),
            waiting: Mutex::default(),
            sooner: Notify::new(),
            done: Notify::new(),
            closing: CancellationToken::new(),
        })
    }

    /// Starts the tasks that drain the queue, read replies and watch deadlines.
    pub(super) async fn start(connection: &Arc<Connection>) -> Result<()> {
        let outbound = connection.outbound.clone();
        let mut confirmations =
            connection.client.subscribe(format!("{}*", outbound.inbox)).await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "no inbox for confirmations").because(error)
            })?;
        let closed = connection.closed.clone();
        let reader = (outbound.clone(), Arc::downgrade(connection), closed.clone());
        connection.vital("nats confirmations", async move {
            let (outbound, connection, closed) = reader;
            let mut answers = Vec::new();
            loop {
                let message = tokio::select! {
                    message = confirmations.next() => message,
                    () = closed.cancelled() => return,
                };
                let Some(message) = message else { return };
                answers.extend(outbound.confirmed(message, &connection));
                while let Some(Some(message)) = confirmations.next().now_or_never() {
                    answers.extend(outbound.confirmed(message, &connection));
                }
                answers.drain(..).rev().for_each(|(answer, result): (PendingPublish, _)| answer.send(result));
            }
        });
        let mover = (outbound.clone(), closed.clone());
        connection.vital("nats sender", async move {
            tokio::select! { () = mover.0.move_on() => {}, () = mover.1.cancelled() => {} }
        });
        let mut denied = connection.denied.subscribe();
        let watcher = (outbound, Arc::downgrade(connection), closed);
        connection.vital("nats deadlines", async move {
            let (outbound, connection, closed) = watcher;
            loop {
                tokio::select! {
                    () = outbound.until_deadline() => outbound.expire(&connection),
                    denied = denied.recv() => if let Ok(denied) = denied {
                        outbound.fail(|waiting| waiting.subject.as_str() == denied.subject, || denied.error());
                    },
                    () = closed.cancelled() => return,
                }
            }
        });
        Ok(())
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
        let reply = self.wait(subject.clone(), Awaited::Stored(answer, None), until);
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
        let reply = Some(self.wait(subject.clone(), Awaited::Word(answer), until));
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
        let reply = self.wait(subject.clone(), Awaited::Stored(answer, Some(message.into())), deadline);
        self.send(OutboundMessage { subject, reply: Some(reply), headers: Some(headers), payload });
    }

    /// Adds a pending reply and returns its reply subject.
    fn wait(&self, subject: NatsSubject, answer: Awaited, deadline: Instant) -> NatsSubject {
        let mut table = self.table();
        if table.ended {
            drop(table);
            answer.fail(super::error::closed());
            return NatsSubject::from(self.inbox.as_str());
        }
        table.generation = table.generation.wrapping_add(1);
        let generation = table.generation;
        let at = table.entries.insert(Waiting { generation, subject, answer, deadline });
        // Nearly always the last place: most requests have the same timeout.
        let place = table.deadlines.partition_point(|(other, ..)| *other <= deadline);
        table.deadlines.insert(place, (deadline, at, generation));
        let sooner = table.watched.is_none_or(|watched| deadline < watched);
        drop(table);
        if sooner {
            self.sooner.notify_one();
        }
        let mut reply = String::with_capacity(self.inbox.len() + 16);
        reply.push_str(&self.inbox);
        let _ = std::fmt::Write::write_fmt(&mut reply, format_args!("{at}-{generation}"));
        NatsSubject::from(reply)
    }

    fn take(&self, token: &str) -> Option<Waiting> {
        let (at, generation) = token.split_once('-')?;
        let (at, generation): (usize, u32) = (at.parse().ok()?, generation.parse().ok()?);
        let mut table = self.table();
        if table.entries.get(at)?.generation != generation {
            return None;
        }
        let waiting = table.entries.remove(at);
        if table.entries.is_empty() {
            table.deadlines.clear();
            if self.is_closing() {
                self.done.notify_waiters();
            }
        }
        Some(waiting)
    }

    /// Reads a reply. Returns the publisher to answer and its receipt, unless the reply was handled here.
    fn confirmed(
        &self,
        reply: NatsMessage,
        connection: &Weak<Connection>,
    ) -> Option<(PendingPublish, Result<Receipt>)> {
        let token = reply.subject.as_str().strip_prefix(self.inbox.as_str()).unwrap_or_default();
        let waiting = self.take(token)?;
        let nobody = reply.status == Some(StatusCode::NO_RESPONDERS);
        let (answer, message) = match waiting.answer {
            Awaited::Word(answer) => {
                let _ = answer.send(Ok((!nobody).then_some(reply)));
                return None;
            }
            Awaited::Stored(answer, message) => (answer, message),
        };
        let result = if nobody {
            if let (Some(message), Some(connection)) = (message, connection.upgrade()) {
                // No responders: no stream has the subject, or JetStream is not ready after a restart.
                super::publish::again(&connection, *message, answer, waiting.deadline);
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

    async fn until_deadline(&self) {
        loop {
            let next = {
                let mut table = self.table();
                table.watched = table.deadlines.front().map(|(at, ..)| *at);
                table.watched
            };
            match next {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    () = self.sooner.notified() => {}
                },
                None => self.sooner.notified().await,
            }
        }
    }

    /// Fails the pending replies whose deadline has passed.
    fn expire(&self, connection: &Weak<Connection>) {
        let (now, mut late, mut table) = (Instant::now(), Vec::new(), self.table());
        while let Some((at, index, generation)) = table.deadlines.front().copied() {
            let alive = table.entries.get(index).is_some_and(|entry| entry.generation == generation);
            if alive && at > now {
                break;
            }
            table.deadlines.pop_front();
            if alive {
                late.push(table.entries.remove(index));
            }
        }
        drop(table);
        self.done.notify_waiters();
        for waiting in late {
            let error = match connection.upgrade() {
                Some(connection) => connection.no_answer(waiting.subject.as_str(), self.patience),
                None => super::error::closed(),
            };
            waiting.answer.fail(error);
        }
    }

    fn fail(&self, which: impl Fn(&Waiting) -> bool, error: impl Fn() -> Error) {
        let mut table = self.table();
        let all = table.entries.iter();
        let chosen: Vec<_> = all.filter(|(_, waiting)| which(waiting)).map(|(at, _)| at).collect();
        let chosen: Vec<_> = chosen.into_iter().map(|at| table.entries.remove(at)).collect();
        drop(table);
        self.done.notify_waiters();
        for waiting in chosen {
            waiting.answer.fail(error());
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
        loop {
            let done = self.done.notified();
            if self.table().entries.is_empty() {
                return;
            }
            done.await;
        }
    }

    /// Fails every pending reply, and every later one, with [`ErrorKind::Closed`].
    pub(super) fn abandon(&self) {
        self.table().ended = true;
        self.fail(|_| true, super::error::closed);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
