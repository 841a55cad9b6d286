//! The replies that callers of one connection wait for, with the deadline of each.
//!
//! One inbox receives all replies of a connection; the last token of a reply's subject is its index in the table.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use async_nats::{Message as NatsMessage, Subject as NatsSubject};
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::closed;
use super::pub_ack::PendingPublish;
use event_transport::confirm::Answer;
use event_transport::error::Error;
use event_transport::message::Message;
use event_transport::sync::lock;

/// The pending replies of one connection.
pub(super) struct PendingReplies {
    /// Prefix of the reply subjects.
    pub(super) inbox: String,
    table: Mutex<Table>,
    /// Wakes the deadline task: a deadline was added before the one it waits for.
    sooner: Notify,
    /// Notified when no reply is pending any more.
    done: Notify,
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
pub(super) struct Waiting {
    generation: u32,
    pub(super) subject: NatsSubject,
    pub(super) answer: Awaited,
    pub(super) deadline: Instant,
}

/// The kind of reply that a caller waits for.
pub(super) enum Awaited {
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

impl PendingReplies {
    pub(super) fn new(inbox: String) -> Self {
        Self { inbox, table: Mutex::default(), sooner: Notify::new(), done: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Adds a pending reply and returns its reply subject.
    pub(super) fn add(&self, subject: NatsSubject, answer: Awaited, deadline: Instant) -> NatsSubject {
        let mut table = self.table();
        if table.ended {
            drop(table);
            answer.fail(closed());
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

    /// Takes the entry that a received message replies to. `closing` tells whether someone waits for the last one.
    pub(super) fn take(&self, reply: &NatsMessage, closing: bool) -> Option<Waiting> {
        let token = reply.subject.as_str().strip_prefix(self.inbox.as_str()).unwrap_or_default();
        let (at, generation) = token.split_once('-')?;
        let (at, generation): (usize, u32) = (at.parse().ok()?, generation.parse().ok()?);
        let mut table = self.table();
        if table.entries.get(at)?.generation != generation {
            return None;
        }
        let waiting = table.entries.remove(at);
        if table.entries.is_empty() {
            table.deadlines.clear();
            if closing {
                self.done.notify_waiters();
            }
        }
        Some(waiting)
    }

    /// Waits until the earliest deadline.
    pub(super) async fn until_deadline(&self) {
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

    /// Fails the pending replies whose deadline has passed, with an error for the subject of each.
    pub(super) fn expire(&self, error: impl Fn(&str) -> Error) {
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
            let error = error(waiting.subject.as_str());
            waiting.answer.fail(error);
        }
    }

    /// Fails the pending replies to requests whose subject fits.
    pub(super) fn fail(&self, which: impl Fn(&str) -> bool, error: impl Fn() -> Error) {
        let mut table = self.table();
        let all = table.entries.iter();
        let chosen: Vec<_> =
            all.filter(|(_, waiting)| which(waiting.subject.as_str())).map(|(at, _)| at).collect();
        let chosen: Vec<_> = chosen.into_iter().map(|at| table.entries.remove(at)).collect();
        drop(table);
        self.done.notify_waiters();
        for waiting in chosen {
            waiting.answer.fail(error());
        }
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

    /// Fails every pending reply, and every later one, because the connection has ended.
    pub(super) fn end(&self) {
        self.table().ended = true;
        self.fail(|_| true, closed);
    }
}
