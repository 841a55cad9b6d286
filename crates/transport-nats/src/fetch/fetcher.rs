//! The fetching task of a member: pulls only as many messages as it has room for, renews leases, delivers messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::StatusCode;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::inputs::Inputs;
use super::leases::Leases;
use super::receive::{Arrived, Received, Unwanted, decode, read};
use super::sources::Sources;
use crate::codec::AckInfo;
use crate::group::{Groups, Record, Standing};
use crate::in_flight::LeasedMessage;
use crate::member::{Command, Member};
use crate::poison::Disconnects;
use crate::pull::{EXPIRES, PullStatus, part};
use event_transport::error::Result;
use event_transport::outage::Outage;
use event_transport::subscription::{Feed, Health};

/// Interval of scans for topics, in addition to the notifications of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// Largest number of messages processed before the loop checks its other inputs.
const BATCH: usize = 32;

/// A member's fetching task.
pub(in super::super) struct Fetcher {
    member: Arc<Member>,
    feed: Feed,
    inputs: Inputs,
    sources: Sources,
    leases: Leases,
    disconnects: Disconnects,
    /// Whether a warning was logged for an outage that has not ended.
    outage: Outage,
}

/// Whether the task continues.
enum Turn {
    Go,
    Stop,
    /// The group was deleted.
    Gone,
}

impl Fetcher {
    pub(in super::super) async fn open(
        groups: &Arc<Groups>,
        member: &Arc<Member>,
        feed: Feed,
        record: Record,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self> {
        let inbox = groups.client.new_inbox();
        Ok(Self {
            member: member.clone(),
            feed,
            inputs: Inputs::open(groups, member, &inbox, commands).await?,
            sources: Sources::new(groups, member.group.clone(), record, inbox),
            leases: Leases::new(member),
            disconnects: Disconnects::new(&groups.client),
            outage: Outage::default(),
        })
    }

    pub(in super::super) async fn run(mut self) {
        let closing = self.member.closing.subscribe();
        let mut connects = self.member.client.link.connects.clone();
        connects.mark_unchanged();
        if let Err(error) = self.sources.scan().await {
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
        if !self.member.client.closed.is_cancelled() {
            self.hand_back().await;
            self.feed.report(Health::Stopped);
            self.leases.hold(&self.feed, &mut connects).await;
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
        let closed = self.member.client.closed.clone();
        let mut renew = Instant::now() + self.member.lease() / 3;
        let mut rescan = Instant::now() + RESCAN;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if *closing.borrow() || stopped.is_cancelled() || gone.is_cancelled() {
                return Turn::Stop;
            }
            self.leases.hand_out(&self.feed);
            // Read once; slots that are released after this wake the `room` branch below.
            let waiting = self.leases.waiting();
            let free = self.feed.free().saturating_sub(waiting);
            let full = free == 0 || waiting > 0;
            let (wake, silent) = self.sources.pull(&self.feed, free);
            if silent {
                self.begin_outage("a pull was not answered");
                let _ = self.member.commands.send(Command::Verify);
            }
            let again =
                if full { 1 } else { self.sources.pulls.outstanding() + part(self.feed.max_in_flight()) };
            let next = [Some(renew), Some(rescan), wake].into_iter().flatten().min().expect("two at least");
            let turn = tokio::select! {
                message = self.inputs.messages.next() => {
                    let Some(message) = message else { return Turn::Stop };
                    batch.push(message);
                    while batch.len() < BATCH
                        && let Some(Some(message)) = self.inputs.messages.next().now_or_never()
                    {
                        batch.push(message);
                    }
                    self.receive_all(&mut batch).await
                }
                command = self.inputs.commands.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => Turn::Stop,
                },
                () = self.feed.room(again), if full || (free < again && again <= self.feed.max_in_flight()) => Turn::Go,
                changed = self.inputs.changes.next() => if changed.is_some() { self.reload().await } else { Turn::Stop },
                news = self.inputs.news.next() => {
                    if news.is_some() && let Err(error) = self.sources.scan().await {
                        self.begin_outage(&error.to_string());
                    }
                    Turn::Go
                }
                _ = connects.changed() => {
                    // The server has dropped every pull of the last connection.
                    self.sources.pulls.forget();
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
                self.leases.renew();
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

    /// Handles a status message for a pull.
    fn status(&mut self, message: &async_nats::Message, status: StatusCode) {
        match self.sources.pulls.status(message, status) {
            PullStatus::Alive => self.end_outage(),
            PullStatus::Failed(text) => {
                self.begin_outage(&text);
                let _ = self.member.commands.send(Command::Verify);
            }
            PullStatus::Ignored => {}
        }
    }

    async fn on_command(&mut self, command: Command) -> Turn {
        match command {
            Command::Verify => self.verify_all().await,
        }
    }

    /// Processes received messages in their order.
    async fn receive_all(&mut self, batch: &mut Vec<async_nats::Message>) -> Turn {
        // A server sends the changed record before it delivers messages that match the new filters.
        if let Some(Some(_)) = self.inputs.changes.next().now_or_never() {
            match self.reload().await {
                Turn::Go => {}
                end => return end,
            }
        }
        let now = Instant::now();
        let mut entries = Vec::with_capacity(batch.len());
        let mut unmatched = Vec::new();
        for message in batch.drain(..) {
            // Clients may set a status header as well; only messages from the server have no reply subject.
            if let Some(status) = message.status
                && message.reply.is_none()
            {
                self.status(&message, status);
                continue;
            }
            match read(&self.member, &mut self.sources, message, now, Unwanted::Recheck).await {
                Received::LeasedMessage(entry) => entries.push(entry),
                Received::Unmatched(arrived) => unmatched.push(arrived),
                Received::Nothing => {}
            }
        }
        if !entries.is_empty() && self.outage.is_on() {
            self.end_outage();
        }
        // Commands that were sent before a message was delivered again must be processed first.
        while let Ok(command) = self.inputs.commands.try_recv() {
            match self.on_command(command).await {
                Turn::Go => {}
                end => return end,
            }
        }
        if !unmatched.is_empty() {
            match self.recheck(unmatched, now, &mut entries).await {
                Turn::Go => {}
                end => return end,
            }
        }
        self.leases.accept(entries);
        Turn::Go
    }

    /// Reads the group's record again for messages that its filters did not match. When that fails, the messages are
    /// delivered again after their leases end.
    async fn recheck(
        &mut self,
        unmatched: Vec<Arrived>,
        now: Instant,
        entries: &mut Vec<LeasedMessage>,
    ) -> Turn {
        match self.standing().await {
            Ok(Standing::Deleted) => return Turn::Gone,
            Ok(Standing::There(record)) if record.epoch != self.sources.record.epoch => {
                return self.follow(record).await;
            }
            Ok(Standing::There(record)) => {
                if let end @ (Turn::Stop | Turn::Gone) = self.follow(record).await {
                    return end;
                }
            }
            Err(error) => {
                self.begin_outage(&error.to_string());
                return Turn::Go;
            }
        }
        for arrived in unmatched {
            let Some(reply) = arrived.message.reply.clone() else { continue };
            let Some(info) = AckInfo::read(&reply) else { continue };
            let sources = &mut self.sources;
            let read = decode(&self.member, sources, arrived, &info, now, Unwanted::Skip).await;
            if let Received::LeasedMessage(entry) = read {
                entries.push(entry);
            }
        }
        Turn::Go
    }

    /// Releases the messages that no consumer has taken, including those in transit.
    async fn hand_back(&mut self) {
        self.leases.release_untaken().await;
        let patience = Instant::now() + EXPIRES * 3;
        while self.sources.pulls.any_open()
            && self.member.client.link.is_connected()
            && let Ok(Some(message)) = tokio::time::timeout_at(patience, self.inputs.messages.next()).await
        {
            let now = Instant::now();
            match message.status {
                Some(status) => drop(self.sources.pulls.status(&message, status)),
                None => {
                    let read = read(&self.member, &mut self.sources, message, now, Unwanted::Take).await;
                    if let Received::LeasedMessage(entry) = read {
                        self.leases.accept(vec![entry]);
                        self.leases.release_untaken().await;
                    }
                }
            }
        }
    }

    /// Returns the group's state on the server.
    async fn standing(&self) -> Result<Standing> {
        self.sources.groups.standing(&self.member.group, &self.sources.record).await
    }

    /// Reads the group's record again.
    async fn reload(&mut self) -> Turn {
        match self.standing().await {
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
        let moved = self.sources.replace(record);
        self.member.set_lease(self.sources.record.lease());
        if moved {
            // The group was moved, so the messages and pulls of the old epoch are void.
            self.leases.drop_ready();
            self.member.in_flight().clear();
        }
        if let Err(error) = self.sources.scan().await {
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
        if let Err(error) = self.sources.verify().await {
            self.begin_outage(&error.to_string());
        }
        Turn::Go
    }

    /// Checks whether a received message broke the connection, and stores it as a dead letter if so.
    async fn check_disconnects(&mut self) {
        if self.disconnects.are_odd(&self.member.client, self.member.lease()) {
            let sources: Vec<_> = self.sources.pulls.sources().cloned().collect();
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
