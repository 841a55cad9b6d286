//! The group's messages at its leader: claims them for delivery, delivers them, and applies their settlements.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::jobs::{Done, Jobs};
use super::writer::{CheckpointWriter, Claims};
use crate::dead_letters::DeadLettering;
use crate::keyed::backlog::Backlog;
use crate::keyed::member::{Command, KeyedMember};
use event_transport::confirm::Answer;
use event_transport::delivery::{Delivery, Settle, Settlement, Token, lease_lost};
use event_transport::error::Result;
use event_transport::subscription::Feed;

/// Delay before a dead letter that could not be stored is tried again.
const DEAD_LETTER_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Deliveries {
    member: Arc<KeyedMember>,
    pub(super) feed: Feed,
    pub(super) backlog: Backlog,
    /// Rejected messages that are being stored as dead letters.
    dead_lettering: HashSet<Token>,
    /// Nothing is delivered any more.
    stopping: bool,
}

impl Deliveries {
    pub(super) fn new(member: Arc<KeyedMember>, feed: Feed) -> Self {
        let (backlog, dead_lettering) = (Backlog::default(), HashSet::new());
        Self { member, feed, backlog, dead_lettering, stopping: false }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Returns whether a message can be claimed when the feed has a free slot.
    pub(super) fn can_claim(&self) -> bool {
        !self.stopping && self.backlog.has_ready()
    }

    /// Returns whether no consumer holds a message, and no dead letter is being stored.
    pub(super) fn is_idle(&self) -> bool {
        self.dead_lettering.is_empty() && self.backlog.all_out().is_empty()
    }

    /// Claims ready messages. They are delivered when the claim has been written.
    pub(super) fn claim(&mut self, mut slot: Option<OwnedSemaphorePermit>, writer: &mut CheckpointWriter) {
        while self.can_claim() {
            let Some(slot) = slot.take().or_else(|| self.feed.try_slot()) else { return };
            // `claim` may settle expired messages, and that has to be written too.
            writer.mark_dirty();
            let Some(token) = self.backlog.claim() else { return };
            writer.claim(token, slot);
        }
    }

    /// Delivers messages whose claims were written.
    pub(super) fn deliver(&mut self, claims: Claims) {
        for (token, slot) in claims {
            if let Some((message, info)) = self.backlog.hand_out(token) {
                self.member.count_delivered();
                let settle: Arc<dyn Settle> = self.member.clone();
                self.feed.push(Delivery::new(message, info, settle, token, slot));
            }
        }
    }

    /// Applies the settlement or the renewal of a delivery, in this epoch of the group. It is confirmed when it has been
    /// written.
    pub(super) fn on_command(
        &mut self,
        command: Command,
        epoch: u64,
        writer: &mut CheckpointWriter,
        jobs: &mut Jobs,
    ) {
        let (Command::Settle(token, ..) | Command::Renew(token, _)) = &command;
        let Some(entry) = self.backlog.out(*token) else {
            let (Command::Settle(.., answer) | Command::Renew(_, answer)) = command;
            return drop(answer.send(Err(lease_lost())));
        };
        let (token, settlement, answer) = match command {
            Command::Settle(token, settlement, answer) => (token, settlement, answer),
            Command::Renew(_, answer) => return writer.confirm(answer),
        };
        match settlement {
            Settlement::Reject(rejection) => {
                let (dead_letters, group) = (self.member.dead_letters.clone(), self.member.group.clone());
                let stream = self.member.client.names.stream(&entry.topic);
                let time = entry.info.published_at.unwrap_or_default().as_nanosecond();
                // The same id for a leader that stores the letter again after a take-over.
                let id = format!("dlq/{stream}/{group}@{epoch}/{}/{time}", entry.sequence);
                let (message, info) = (entry.message.clone(), entry.info.clone());
                let first_ms = self.backlog.first_attempt(token);
                let letter = DeadLettering { message, info, first_ms, id };
                self.dead_lettering.insert(token);
                return jobs.start(async move {
                    let result = dead_letters.store(&group, &letter, rejection).await;
                    Done::DeadLettered { token, result, answer }
                });
            }
            Settlement::Ack => self.backlog.settle(token),
            Settlement::Retry { after, .. } => self.backlog.retry(token, after),
            Settlement::Release => self.backlog.release(token),
            Settlement::Defer { after } => self.backlog.defer(token, after),
        }
        self.put_down();
        writer.confirm(answer);
    }

    /// Settles a rejected message when its dead letter is stored, or delivers it again later.
    pub(super) fn on_dead_lettered(
        &mut self,
        token: Token,
        result: Result<()>,
        answer: Answer<()>,
        writer: &mut CheckpointWriter,
    ) {
        // Tokens are not used again, so this is not a message that was read after the loss of the leadership.
        if !self.dead_lettering.remove(&token) {
            return drop(answer.send(Err(lease_lost())));
        }
        match result {
            Ok(()) => {
                self.backlog.settle(token);
                writer.confirm(answer);
            }
            Err(error) => {
                let _ = answer.send(Err(error.during("settle")));
                self.backlog.retry(token, DEAD_LETTER_AGAIN);
                writer.mark_dirty();
            }
        }
        self.put_down();
    }

    /// Counts a delivery as no longer held by its consumer.
    fn put_down(&mut self) {
        self.member.count_put_down();
        if self.stopping {
            self.backlog.let_go();
        }
    }

    /// Stops delivering, and releases messages that no consumer has taken. Returns whether it did so just now.
    pub(super) fn stop(&mut self, writer: &mut CheckpointWriter) -> bool {
        if std::mem::replace(&mut self.stopping, true) {
            return false;
        }
        for token in writer.take_claims() {
            self.backlog.release(token);
        }
        self.backlog.let_go();
        writer.mark_dirty();
        true
    }

    /// Releases all messages that consumers hold, except those that are being stored as dead letters.
    pub(super) fn release_all(&mut self, writer: &mut CheckpointWriter) {
        for token in self.backlog.all_out() {
            if !self.dead_lettering.contains(&token) {
                self.backlog.release(token);
                self.member.count_put_down();
                writer.mark_dirty();
            }
        }
        self.backlog.let_go();
    }

    /// Drops everything held here, because it can no longer be settled.
    pub(super) fn void(&mut self) {
        self.dead_lettering.clear();
        self.backlog.clear();
        self.member.count_none();
        self.feed.take_back();
    }
}
