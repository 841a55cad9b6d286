//! The fetching task of a member: pulls only as many messages as it has room for, renews leases, delivers messages.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::subjects::Subjects;
use super::double_ack::send;
use super::group::{Record, Standing};
use super::member::{Command, LeasedMessage, Member, Seen, Source};
use super::poison::{self, Disconnects};
use super::pull::{EXPIRES, PullStatus, Pulls, part};
use super::settle::{ACK, Attempt, PROGRESS};
use super::{codec, dead_letters};
use crate::delivery::{Delivery, DeliveryInfo, Settle, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::Group;
use crate::subscription::{Feed, Health};
use crate::transport::outage::Outage;

mod leases;
mod receive;
mod sources;
mod subjects;

/// Interval of scans for topics, in addition to the notifications of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// How long free slots are collected for one pull while the consumer has deliveries to take.
const GATHER: Duration = Duration::from_millis(1);
/// Largest number of messages processed before the loop checks its other inputs.
const BATCH: usize = 32;

/// A member's fetching task.
pub(super) struct Fetcher {
    member: Arc<Member>,
    settle: Arc<dyn Settle>,
    feed: Feed,
    record: Record,
    messages: Subscriber,
    /// Receives the group's record when it changes.
    changes: Subscriber,
    news: Subscriber,
    commands: mpsc::UnboundedReceiver<Command>,
    pulls: Pulls,
    /// Messages to deliver as soon as a slot is free.
    ready: VecDeque<Token>,
    disconnects: Disconnects,
    /// Whether a warning was logged for an outage that has not ended.
    outage: Outage,
    subjects: Subjects,
    /// Time until which free slots are collected.
    gathering: Option<Instant>,
}

/// Whether the task continues.
enum Turn {
    Go,
    Stop,
    /// The group was deleted.
    Gone,
}

impl Fetcher {
    pub(super) async fn open(
        member: &Arc<Member>,
        feed: Feed,
        record: Record,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self> {
        let connection = &member.connection;
        let inbox = connection.client.new_inbox();
        let listen = async |subject: String| {
            connection.client.subscribe(subject).await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
            })
        };
        let fetcher = Self {
            settle: member.clone(),
            messages: listen(format!("{inbox}.>")).await?,
            changes: listen(connection.group_subject(&member.group)).await?,
            news: listen(connection.names.news()).await?,
            member: member.clone(),
            feed,
            record,
            pulls: Pulls::new(connection.outbound.clone(), inbox),
            commands,
            ready: VecDeque::new(),
            disconnects: Disconnects::new(connection),
            outage: Outage::default(),
            subjects: Subjects::default(),
            gathering: None,
        };
        Ok(fetcher)
    }

    pub(super) async fn run(mut self) {
        let closing = self.member.closing.subscribe();
        let mut connects = self.member.connection.connects.clone();
        connects.mark_unchanged();
        if let Err(error) = self.scan().await {
            self.begin_outage(&error.to_string());
        }
        self.feed.report(Health::Live);
        let turn = self.fetch(closing, &mut connects).await;
        {
            let _hand = self.member.in_flight();
            self.member.live.store(false, Ordering::Release);
        }
        if let Turn::Gone = turn {
            self.member.in_flight().clear();
            self.finish();
            return;
        }
        // Nothing can be released or renewed over a connection that has ended.
        if !self.member.connection.closed.is_cancelled() {
            self.hand_back().await;
            self.feed.report(Health::Stopped);
            self.hold(&mut connects).await;
        }
        self.finish();
    }

    fn finish(self) {
        let member = self.member.clone();
        drop(self);
        member.ended.send_replace(true);
    }

    async fn fetch(
        &mut self,
        mut closing: tokio::sync::watch::Receiver<bool>,
        connects: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Turn {
        let (stopped, gone) = (self.feed.stopped().clone(), self.feed.gone().clone());
        let closed = self.member.connection.closed.clone();
        let mut renew = Instant::now() + self.member.lease() / 3;
        let mut rescan = Instant::now() + RESCAN;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if *closing.borrow() || stopped.is_cancelled() || gone.is_cancelled() {
                return Turn::Stop;
            }
            self.hand_out();
            // Read once; slots that are released after this wake the `room` branch below.
            let free = self.feed.free().saturating_sub(self.ready.len());
            let full = free == 0 || !self.ready.is_empty();
            let wake = self.pull(free);
            let again = if full { 1 } else { self.pulls.outstanding() + part(self.feed.max_in_flight()) };
            let next = [Some(renew), Some(rescan), wake].into_iter().flatten().min().expect("two at least");
            let turn = tokio::select! {
                message = self.messages.next() => {
                    let Some(message) = message else { return Turn::Stop };
                    batch.push(message);
                    while batch.len() < BATCH
                        && let Some(Some(message)) = self.messages.next().now_or_never()
                    {
                        batch.push(message);
                    }
                    self.receive_all(&mut batch).await
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => Turn::Stop,
                },
                () = self.feed.room(again), if full || (free < again && again <= self.feed.max_in_flight()) => Turn::Go,
                changed = self.changes.next() => if changed.is_some() { self.reload().await } else { Turn::Stop },
                news = self.news.next() => {
                    if news.is_some() && let Err(error) = self.scan().await {
                        self.begin_outage(&error.to_string());
                    }
                    Turn::Go
                }
                _ = connects.changed() => {
                    // The server has dropped every pull of the last connection.
                    self.pulls.forget();
                    let turn = self.verify_all().await;
                    self.check_disconnects().await;
                    turn
                }
                () = tokio::time::sleep_until(next) => Turn::Go,
                _ = closing.changed() => Turn::Stop,
                () = stopped.cancelled() => Turn::Stop,
                () = closed.cancelled() => Turn::Stop,
            };
            match turn {
                Turn::Go => {}
                end => return end,
            }
            let now = Instant::now();
            if now >= renew {
                self.renew();
                renew = now + self.member.lease() / 3;
            }
            if now >= rescan {
                if let Turn::Gone = self.verify_all().await {
                    return Turn::Gone;
                }
                rescan = now + RESCAN;
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Sends pulls for the free slots. Returns the latest time at which to check again.
    fn pull(&mut self, free: usize) -> Option<Instant> {
        // Many small pulls cost more than one. When the consumer has nothing to take, the pull is sent at once.
        let busy = self.feed.untaken() > 0;
        let room = if busy { self.feed.max_in_flight() } else { free };
        if free > 0 && free < part(room) && self.pulls.outstanding() == 0 {
            let until = *self.gathering.get_or_insert_with(|| Instant::now() + GATHER);
            if until > Instant::now() {
                return Some(until);
            }
        }
        self.gathering = None;
        let (wake, silent) = self.pulls.top_up_by(free, room);
        if silent {
            self.begin_outage("a pull was not answered");
            let _ = self.member.commands.send(Command::Verify);
        }
        wake
    }

    /// Handles a status message for a pull.
    fn status(&mut self, message: &async_nats::Message, status: StatusCode) {
        match self.pulls.status(message, status) {
            PullStatus::Alive => self.end_outage(),
            PullStatus::Failed(text) => {
                self.begin_outage(&text);
                let _ = self.member.commands.send(Command::Verify);
            }
            PullStatus::Ignored => {}
        }
    }

    /// Delivers ready messages while slots are free.
    fn hand_out(&mut self) {
        while !self.ready.is_empty() {
            let Some(slot) = self.feed.try_slot() else { return };
            let Some(token) = self.ready.pop_front() else { return };
            let mut in_flight = self.member.in_flight();
            let Some(entry) = in_flight.get(token) else { continue };
            if entry.is_expired() {
                let entry = in_flight.remove(token).expect("just seen");
                drop(in_flight);
                count_expired();
                self.member.connection.outbound.send_bare(entry.ack, None, ACK);
                continue;
            }
            entry.out = true;
            let (message, info) = (entry.message.clone(), entry.info.clone());
            drop(in_flight);
            self.feed.push(Delivery::new(message, info, self.settle.clone(), token, slot));
        }
    }

    async fn on_command(&mut self, command: Command) -> Turn {
        match command {
            Command::Verify => self.verify_all().await,
        }
    }

    /// Drops the messages that wait for a slot; the server delivers them again.
    fn drop_ready(&mut self) {
        let mut in_flight = self.member.in_flight();
        for token in self.ready.drain(..) {
            in_flight.remove(token);
        }
    }

    /// Reads the group's record again.
    async fn reload(&mut self) -> Turn {
        match self.member.connection.standing(&self.member.group, &self.record).await {
            Ok(Standing::Deleted) => Turn::Gone,
            Ok(Standing::There(record)) => self.follow(record).await,
            Err(error) => {
                self.begin_outage(&error.to_string());
                Turn::Go
            }
        }
    }

    /// Applies a newly read record.
    async fn follow(&mut self, record: Record) -> Turn {
        let moved = record.epoch != self.record.epoch;
        self.record = record;
        self.subjects.forget();
        self.member.set_lease(self.record.lease());
        if moved {
            // The group was moved, so the messages and pulls of the old epoch are void.
            self.pulls.clear();
            self.drop_ready();
            self.member.in_flight().clear();
        }
        if let Err(error) = self.scan().await {
            self.begin_outage(&error.to_string());
        }
        Turn::Go
    }

    /// Checks the group's record and all consumers that the member fetches from, and creates removed ones again.
    async fn verify_all(&mut self) -> Turn {
        match self.reload().await {
            Turn::Go => {}
            end => return end,
        }
        if let Err(error) = self.verify().await {
            self.begin_outage(&error.to_string());
        }
        Turn::Go
    }

    /// Checks whether a received message broke the connection, and stores it as a dead letter if so.
    async fn check_disconnects(&mut self) {
        if self.disconnects.are_odd(&self.member.connection, self.member.lease()) {
            let sources: Vec<_> = self.pulls.sources().cloned().collect();
            for source in sources {
                if let Err(error) = self.disconnects.dead_letter_poison(&self.member, &source).await {
                    self.begin_outage(&error.to_string());
                }
            }
        }
    }

    fn begin_outage(&mut self, what: &str) {
        self.outage.begins_for(&self.member.group, &self.feed, what);
    }

    fn end_outage(&mut self) {
        self.outage.ends_for(&self.member.group, &self.feed);
    }
}

/// Logs and counts a message whose subject no publisher of this library can have made.
pub(super) fn foreign(group: &Group, subject: &str, position: u64) {
    tracing::warn!(
        group = %group, nats_subject = subject, position,
        "a message was skipped: its subject is not valid in this library, which accepts tokens of a-z 0-9 _ -"
    );
    metrics::counter!("event_client_foreign_subjects_total", "transport" => "nats").increment(1);
}

pub(super) fn count_expired() {
    metrics::counter!("event_client_expired_total", "transport" => "nats").increment(1);
}
