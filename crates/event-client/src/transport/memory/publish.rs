//! Publishes messages: size limits, dedup, delay, and the routes from a subject to its groups and listeners.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slab::Slab;
use tokio::time::Instant;

use super::MemoryConfig;
use super::connection::{Connection, State};
use super::group::{Entry, GroupState};
use super::log::weight;
use super::subscribe::Listeners;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Durability, Message, MessageId, Position};
use crate::subject::Subject;
use crate::telemetry::count_expired;
use crate::transport::{Receipt, headers};

/// Stores `message` and wakes the groups and listeners that match its subject.
pub(super) fn publish(connection: &Connection, message: Message) -> Result<Receipt> {
    connection.check()?;
    headers::check(&message).map_err(|error| error.with("subject", &message.subject))?;
    let config = &connection.bus.config;
    check_size(&message, config)?;
    if message.durability > Durability::Default {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a bus in memory ends with its process and cannot promise durability; use `sqlite:PATH`",
        )
        .with("subject", &message.subject));
    }
    let wall = Timestamp::now();
    // Wall-clock times become durations at once: from here on the runtime's clock counts, which tests can pause.
    let now = Instant::now();
    let reach = |at| bounds::later(now, bounds::left_until(at));
    let expires = message.expires_at.map(reach);
    let due = message.deliver_at.map(reach).filter(|at| *at > now);
    let bytes = weight(&message);

    let mut state = connection.bus.lock();
    state.advance(now);
    let dedup = message.dedup.then(|| message.id.clone());
    if let Some(id) = &dedup {
        if let Some(position) = state.dedup.find(id, now) {
            return Ok(Receipt { position, duplicate: true });
        }
        state.dedup.has_room(config)?;
    }
    if !state.log.has_room(bytes) {
        state.sweep(now);
        if !state.log.has_room(bytes) {
            let needed = state.log.needed();
            return Err(Error::new(
                ErrorKind::Full,
                "the bus in memory is full of messages that groups, delays or dead letters still need",
            )
            .with("subject", &message.subject)
            .with("messages", format!("{}/{}", needed.messages, config.max_messages))
            .with("bytes", format!("{}/{}", needed.bytes, config.max_bytes)));
        }
    }
    let message = Arc::new(message);
    let position = match due {
        Some(due) => {
            state.log.reserve(bytes);
            state.schedule.add(Scheduled { message, published_at: wall, expires }, due);
            state.wake_all();
            None
        }
        None => Some(Position(u128::from(state.append(message, wall, expires)))),
    };
    if let Some(id) = dedup {
        state.dedup.remember(id, position, now, config.dedup_window);
    }
    Ok(Receipt { position, duplicate: false })
}

/// Refuses a message that is larger than `max_payload`.
pub(super) fn check_size(message: &Message, config: &MemoryConfig) -> Result<()> {
    let size = message.size();
    if size <= config.max_payload {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, "the message is larger than the bus takes")
        .with("subject", &message.subject)
        .with("bytes", size)
        .with("max_payload", config.max_payload))
}

impl State {
    /// Adds a message to the log and to every group that matches.
    fn append(&mut self, message: Arc<Message>, published_at: Timestamp, expires: Option<Instant>) -> u64 {
        let route = self.routes.find(&message.subject, &self.groups, &self.listeners);
        let pins = route.groups.len() as u32;
        let number = self.log.append(message.clone(), published_at, expires, pins);
        for place in &route.groups {
            let group = &mut self.groups[*place];
            group.add(Entry::new(number, message.clone(), published_at, expires));
            group.wake_one();
        }
        for id in &route.listeners {
            self.listeners.wake(*id, number);
        }
        number
    }

    /// Publishes delayed messages that are due.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(due) = self.schedule.pop(now) {
            self.log.unreserve(weight(&due.message));
            self.append(due.message, due.published_at, due.expires);
        }
    }

    /// Removes entries that expired before any member fetched them.
    fn sweep(&mut self, now: Instant) {
        let log = &mut self.log;
        let expired = self.groups.iter_mut().map(|(_, group)| group.sweep(now, log)).sum();
        count_expired("memory", expired);
    }

    /// Wakes all members and listeners, so that they check the timers again.
    pub(super) fn wake_all(&mut self) {
        self.groups.iter_mut().for_each(|(_, group)| group.wake_all());
        self.listeners.wake_all();
    }
}

/// A cache of the groups and listeners that match a subject.
#[derive(Debug, Default)]
pub(super) struct Routes(HashMap<Subject, Route>);

#[derive(Debug, Default)]
struct Route {
    groups: Vec<usize>,
    listeners: Vec<u64>,
}

impl Routes {
    /// Largest number of cached subjects. Publishers may use any number of subjects, but the cache must stay bounded.
    const MOST: usize = 4096;

    fn find(&mut self, subject: &Subject, groups: &Slab<GroupState>, listeners: &Listeners) -> &Route {
        if self.0.len() >= Self::MOST && !self.0.contains_key(subject) {
            self.0.clear();
        }
        // `entry` would clone the subject even when it is cached.
        if !self.0.contains_key(subject) {
            let groups = (groups.iter())
                .filter(|(_, group)| group.filters.iter().any(|filter| filter.matches(subject)))
                .map(|(place, _)| place)
                .collect();
            let listeners = listeners.matching(subject);
            self.0.insert(subject.clone(), Route { groups, listeners });
        }
        &self.0[subject]
    }

    /// Clears the cache because groups or listeners changed.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// Delayed messages. The log reserves room for each of them.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    waiting: BTreeMap<u64, Scheduled>,
    next: u64,
}

#[derive(Debug)]
pub(super) struct Scheduled {
    message: Arc<Message>,
    published_at: Timestamp,
    expires: Option<Instant>,
}

impl Schedule {
    fn add(&mut self, scheduled: Scheduled, at: Instant) {
        self.next += 1; // equal times keep the order of publication
        self.due.push(Reverse((at, self.next)));
        self.waiting.insert(self.next, scheduled);
    }

    fn pop(&mut self, now: Instant) -> Option<Scheduled> {
        let Reverse((at, number)) = *self.due.peek()?;
        if at > now {
            return None;
        }
        self.due.pop();
        self.waiting.remove(&number)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }
}

/// Message ids seen within the dedup window.
#[derive(Debug, Default)]
pub(super) struct Dedup {
    seen: HashMap<MessageId, Option<Position>>,
    ends: VecDeque<(Instant, MessageId)>,
}

impl Dedup {
    /// Returns the position of the message with this id, if it was published within the window. A delayed message has
    /// none.
    fn find(&mut self, id: &MessageId, now: Instant) -> Option<Option<Position>> {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, id)) = self.ends.pop_front() {
                self.seen.remove(&id);
            }
        }
        self.seen.get(id).copied()
    }

    fn has_room(&self, config: &MemoryConfig) -> Result<()> {
        if self.seen.len() < config.max_messages {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Full,
            "the bus in memory has reached its limit of dedup ids; publish fewer messages within the dedup window",
        )
        .with("max_messages", config.max_messages)
        .with("dedup_window", format!("{:?}", config.dedup_window)))
    }

    fn remember(&mut self, id: MessageId, position: Option<Position>, now: Instant, window: Duration) {
        self.ends.push_back((bounds::later(now, window), id.clone()));
        self.seen.insert(id, position);
    }
}
