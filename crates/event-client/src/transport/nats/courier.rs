//! What goes out in order without blocking anybody, and the confirmations that come back.
//!
//! One inbox takes all confirmations of a connection: the last token of the reply subject is the place in a table.
//! Commands go straight into the client's channel while it has room; a line forms only behind a full one.

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
use super::ticket::{Ack, Ticket};
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::transport::Receipt;

/// Sends, and knows who waits for which confirmation.
pub(super) struct Courier {
    inbox: String,
    patience: Duration,
    line: Mutex<Line>,
    grown: Notify,
    waiting: Mutex<Table>,
    /// A deadline came before the one that is watched.
    sooner: Notify,
    /// Nobody waits any more, told while closing.
    done: Notify,
    closing: CancellationToken,
}

/// The way into the client's channel, and what is behind a full one.
struct Line {
    client: Client,
    queue: VecDeque<OutboundMessage>,
}

#[derive(Default)]
struct Table {
    /// Answers are no longer read, nor deadlines watched.
    ended: bool,
    entries: Slab<Waiting>,
    generation: u32,
    /// When the watcher looks next, if it does.
    watched: Option<Instant>,
    /// In the order of their deadlines.
    deadlines: VecDeque<(Instant, usize, u32)>,
}

/// Somebody waits for a confirmation.
struct Waiting {
    generation: u32,
    subject: NatsSubject,
    answer: Awaited,
    deadline: Instant,
}

/// What is waited for.
enum Awaited {
    /// The confirmation of a publish; the message is kept to be sent again when the server was not ready for it.
    Stored(Ticket, Option<Box<Message>>),
    /// Any word; none when nobody was there to say it.
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

impl Courier {
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

    /// Starts the tasks that move the line, read confirmations and watch deadlines.
    pub(super) async fn start(connection: &Arc<Connection>) -> Result<()> {
        let courier = connection.courier.clone();
        let mut confirmations =
            connection.client.subscribe(format!("{}*", courier.inbox)).await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "no inbox for confirmations").because(error)
            })?;
        let closed = connection.closed.clone();
        let reader = (courier.clone(), Arc::downgrade(connection), closed.clone());
        connection.vital("nats confirmations", async move {
            let (courier, connection, closed) = reader;
            let mut answers = Vec::new();
            loop {
                let message = tokio::select! {
                    message = confirmations.next() => message,
                    () = closed.cancelled() => return,
                };
                let Some(message) = message else { return };
                answers.extend(courier.confirmed(message, &connection));
                while let Some(Some(message)) = confirmations.next().now_or_never() {
                    answers.extend(courier.confirmed(message, &connection));
                }
                answers.drain(..).rev().for_each(|(answer, result): (Ticket, _)| answer.send(result));
            }
        });
        let mover = (courier.clone(), closed.clone());
        connection.vital("nats sender", async move {
            tokio::select! { () = mover.0.move_on() => {}, () = mover.1.cancelled() => {} }
        });
        let mut denied = connection.denied.subscribe();
        let watcher = (courier, Arc::downgrade(connection), closed);
        connection.vital("nats deadlines", async move {
            let (courier, connection, closed) = watcher;
            loop {
                tokio::select! {
                    () = courier.until_deadline() => courier.expire(&connection),
                    denied = denied.recv() => if let Ok(denied) = denied {
                        courier.fail(|waiting| waiting.subject.as_str() == denied.subject, || denied.error());
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
        // Unconstrained: whether there is room does not depend on how much this task has done in its turn.
        let mut room = pin!(tokio::task::unconstrained(poll_fn(|cx| client.poll_ready_unpin(cx))));
        if queue.is_empty()
            && let Poll::Ready(ready) = room.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            if ready.is_ok() {
                // Refused only for its size, which was looked at before.
                let _ = client.start_send_unpin(letter);
            }
            return;
        }
        queue.push_back(letter);
        drop(line);
        self.grown.notify_one();
    }

    /// Sends an acknowledgement or another word without headers.
    pub(super) fn say(&self, subject: NatsSubject, reply: Option<NatsSubject>, payload: Bytes) {
        self.send(OutboundMessage { subject, reply, payload, headers: None });
    }

    /// Answers with headers alone.
    pub(super) fn answer(&self, subject: NatsSubject, headers: HeaderMap) {
        self.send(OutboundMessage { subject, reply: None, payload: Bytes::new(), headers: Some(headers) });
    }

    /// Stores a message of the library's own; confirmed as a publish is.
    pub(super) fn store(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Confirm<Receipt> {
        let (answer, confirm) = Ticket::free();
        let subject = NatsSubject::from(subject);
        let until = Instant::now() + self.patience;
        let reply = self.wait(subject.clone(), Awaited::Stored(answer, None), until);
        self.send(OutboundMessage { subject, reply: Some(reply), headers: Some(headers), payload });
        confirm
    }

    /// Says something in its turn and waits for a word back; `None` when nobody is there to say one.
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

    /// Sends a user's message and answers when it is confirmed.
    pub(super) fn publish(
        &self,
        subject: NatsSubject,
        headers: HeaderMap,
        message: Message,
        answer: Ticket,
        deadline: Instant,
    ) {
        let payload = message.payload.clone();
        let reply = self.wait(subject.clone(), Awaited::Stored(answer, Some(message.into())), deadline);
        self.send(OutboundMessage { subject, reply: Some(reply), headers: Some(headers), payload });
    }

    /// A reply subject whose confirmation goes to `answer`.
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
        // Nearly always the last: all but a few have the same patience.
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

    /// Reads a confirmation: whom to answer what, unless that is done or must wait.
    fn confirmed(
        &self,
        reply: NatsMessage,
        connection: &Weak<Connection>,
    ) -> Option<(Ticket, Result<Receipt>)> {
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
                // No stream takes the subject, or JetStream is not ready after a restart.
                super::publish::again(&connection, *message, answer, waiting.deadline);
                return None;
            }
            Err(Error::new(ErrorKind::Unavailable, "the server's JetStream does not answer just now"))
        } else {
            Ack::receipt(&reply.payload)
        };
        Some((answer, result.map_err(|error| error.with("nats_subject", waiting.subject))))
    }

    /// Moves what did not fit, in order.
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

    /// Answers those whose time has come.
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

    /// No more publishes from users.
    pub(super) fn stop_taking(&self) {
        self.closing.cancel();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub(super) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Waits until nobody waits for a confirmation.
    pub(super) async fn idle(&self) {
        loop {
            let done = self.done.notified();
            if self.table().entries.is_empty() {
                return;
            }
            done.await;
        }
    }

    /// Whoever still waits, or comes later, learns that the connection is closed.
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
