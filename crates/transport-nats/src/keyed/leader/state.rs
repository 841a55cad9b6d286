//! The state of a keyed member and its reactions: to messages, commands, notifications, and ends of jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::deliveries::Deliveries;
use super::group_record::{Change, GroupRecord};
use super::jobs::{Done, Jobs};
use super::leadership::Leadership;
use super::reader::{Received, StreamReader};
use super::writer::CheckpointWriter;
use crate::error::closed;
use crate::group::{Record, Standing};
use crate::keyed::checkpoint::{self, Mark};
use crate::keyed::election::{self, Claimed, Taken, Written};
use crate::keyed::member::{Command, KeyedMember};
use crate::keyed::open::Opened;
use event_transport::delivery::lease_lost;
use event_transport::error::Result;
use event_transport::outage::Outage;
use event_transport::subscription::{Feed, Health};

pub(super) struct Leader {
    pub(super) member: Arc<KeyedMember>,
    pub(super) jobs: Jobs,
    record: GroupRecord,
    leadership: Leadership,
    reader: StreamReader,
    pub(super) deliveries: Deliveries,
    writer: CheckpointWriter,
    outage: Outage,
    /// The member has resigned, or the group was deleted.
    over: bool,
}

impl Leader {
    /// Returns a member that stands by. Its messages arrive under `inbox`.
    pub(super) fn new(member: Arc<KeyedMember>, feed: Feed, record: Record, inbox: String) -> Self {
        Self {
            jobs: Jobs::default(),
            record: GroupRecord::new(member.clone(), record),
            leadership: Leadership::new(member.clone()),
            reader: StreamReader::new(member.clone(), inbox),
            deliveries: Deliveries::new(member.clone(), feed),
            writer: CheckpointWriter::new(),
            outage: Outage::default(),
            over: false,
            member,
        }
    }

    /// Returns whether the member has nothing left to do.
    pub(super) fn is_over(&self) -> bool {
        let gone = self.deliveries.feed.gone().is_cancelled();
        self.over || (self.deliveries.is_stopping() && self.leadership.is_over(gone))
    }

    /// Returns whether a message can be claimed when the feed has a free slot.
    pub(super) fn can_claim(&self) -> bool {
        self.leadership.leads() && self.deliveries.can_claim()
    }

    /// Claims a message for this slot of the feed, and further ones as far as there are slots.
    pub(super) fn on_slot(&mut self, slot: OwnedSemaphorePermit) {
        self.deliveries.claim(Some(slot), &mut self.writer);
    }

    /// There may be new topics or replays.
    pub(super) fn on_news(&mut self) {
        self.reader.replays.expect();
        self.reader.opening.soon(Duration::ZERO);
    }

    /// Another leader may have resigned.
    pub(super) fn on_led(&mut self) {
        self.leadership.look_soon();
    }

    /// Checks at intervals for changes whose notification was lost.
    pub(super) fn rescan(&mut self) {
        self.reload();
        self.reader.replays.expect();
    }

    /// Does all work that is due. Returns the latest time at which to run again.
    pub(super) fn tick(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let stopping = self.deliveries.is_stopping();
        if !self.leadership.leads() {
            let record = &self.record.current;
            return if stopping { None } else { self.leadership.look(now, record, &mut self.jobs) };
        }
        let due = self.deliveries.backlog.wake(now);
        self.deliveries.claim(None, &mut self.writer);
        let write = self.write(now);
        let (open, pull) = if stopping { (None, None) } else { self.read(now) };
        // After its subscription is dropped, a member has nothing left to do once its leadership has run out.
        let end = self.deliveries.feed.gone().is_cancelled().then(|| self.member.until());
        [due, write, open, pull, end].into_iter().flatten().min()
    }

    /// Writes the record when there are changes or a renewal is due. Returns the time at which to run again.
    fn write(&mut self, now: Instant) -> Option<Instant> {
        let record = &self.record.current;
        let left = self.deliveries.is_stopping() && self.deliveries.is_idle();
        // A member whose subscription was dropped does not renew.
        let renews = !self.deliveries.feed.gone().is_cancelled();
        let renewal = renews.then(|| self.leadership.renewal(record.lease()));
        let at = self.writer.next(left, renewal)?;
        if at > now {
            return Some(at);
        }
        self.writer.begin();
        let marks = self.deliveries.backlog.marks.clone();
        self.leadership.write(now, left, record, marks, &mut self.jobs);
        None
    }

    /// Opens topics and pulls messages, as far as that is due. Returns the times at which to run again for each.
    fn read(&mut self, now: Instant) -> (Option<Instant>, Option<Instant>) {
        let (record, backlog) = (&self.record.current, &self.deliveries.backlog);
        let open = self.reader.open_topics(now, record, backlog, &mut self.jobs);
        let (pull, silent) = self.reader.pull(backlog, &mut self.jobs);
        if silent {
            self.begin_outage("a pull was not answered");
        }
        (open, pull)
    }

    pub(super) fn on_message(&mut self, message: async_nats::Message) {
        let (record, backlog) = (&self.record.current, &mut self.deliveries.backlog);
        match self.reader.on_message(message, record, backlog) {
            Received::Taken => {}
            Received::Doubtful => self.reload(),
            Received::Failed(text) => self.begin_outage(&text),
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        let epoch = self.record.current.epoch;
        self.deliveries.on_command(command, epoch, &mut self.writer, &mut self.jobs);
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Claimed(result) => self.on_claimed(result),
            Done::Written { term, asked, left, result } if term == self.leadership.term() => {
                self.on_written(asked, left, result);
            }
            Done::Written { .. } => {}
            Done::DeadLettered { token, result, answer } => {
                self.deliveries.on_dead_lettered(token, result, answer, &mut self.writer);
            }
            Done::Opened { reading, result } if self.reader.is_current(reading) => {
                match self.reader.on_opened(result, &mut self.deliveries.backlog, &mut self.writer) {
                    Ok(anew) if anew.is_empty() => self.end_outage(),
                    Ok(anew) => self.begin_anew(anew),
                    Err(error) => self.begin_outage(&error.to_string()),
                }
            }
            Done::Replays { reading, room, result } if self.reader.is_current(reading) => {
                let (backlog, writer) = (&mut self.deliveries.backlog, &mut self.writer);
                if let Err(error) = self.reader.on_replays(room, result, backlog, writer) {
                    self.begin_outage(&error.to_string());
                }
            }
            Done::Opened { .. } | Done::Replays { .. } => {}
            Done::Reloaded(result) => self.on_reloaded(result),
        }
    }

    fn on_claimed(&mut self, result: Result<Claimed>) {
        self.leadership.looked(&result, self.record.current.lease());
        match result {
            Ok(Claimed::Led(_)) => self.end_outage(),
            Ok(Claimed::Raced) => {}
            Ok(Claimed::Taken(taken)) => self.lead(*taken),
            Ok(Claimed::Gone) => self.over = true,
            Err(error) => self.begin_outage(&error.to_string()),
        }
    }

    fn lead(&mut self, taken: Taken) {
        let Taken { sequence, asked, progress, record, again } = taken;
        self.leadership.lead(sequence, asked, record.lease());
        self.record.current = record;
        self.deliveries.backlog.clear();
        self.deliveries.backlog.marks = progress.topics;
        self.reader.forget(again);
        self.writer.taken_over();
        self.reader.read_anew(Duration::ZERO);
    }

    /// Stands by from now on because another member leads: nothing held here belongs to this member any more.
    fn stand_by(&mut self) {
        let marks = std::mem::take(&mut self.deliveries.backlog.marks);
        self.leadership.stand_by(marks, self.record.current.lease());
        self.void();
        self.reader.close();
    }

    fn on_written(&mut self, asked: Instant, left: bool, result: Result<Written>) {
        match result {
            Ok(Written::Stored(sequence)) => {
                self.leadership.renewed(sequence, asked, self.record.current.lease());
                self.deliveries.deliver(self.writer.stored());
                if self.writer.is_clean() {
                    self.reader.replays.purge(&self.deliveries.backlog);
                }
                if left {
                    election::tell_led(&self.member.client, &self.member.group);
                    self.over = true;
                }
                if !self.reader.opening.is_ahead() {
                    self.end_outage();
                }
            }
            Ok(Written::Ours(sequence)) => {
                self.leadership.wrote_before(sequence);
                self.writer.put_back();
            }
            Ok(Written::Lost) => {
                tracing::info!(group = %self.member.group, "another member leads this group now");
                self.writer.put_back();
                self.stand_by();
            }
            Err(error) => {
                self.writer.failed(self.member.client.config.request_timeout, &error);
                self.begin_outage(&error.to_string());
                // The state stream itself may have been deleted.
                self.reload();
            }
        }
    }

    /// Messages in transit are lost, and the server may be a different one.
    pub(super) fn on_reconnect(&mut self) {
        self.reader.opening.reconnected(&self.member.client, self.record.current.lease());
        self.reader.read_anew(Duration::ZERO);
        self.writer.retry_soon();
        self.leadership.look_soon();
        self.reload();
    }

    /// Restarts topics whose streams were deleted and created again: marks of the earlier streams are void, and the
    /// new ones are read from the beginning.
    fn begin_anew(&mut self, topics: Vec<Opened>) {
        let mut marks = std::mem::take(&mut self.deliveries.backlog.marks);
        for Opened { topic, made, .. } in topics {
            tracing::error!(
                group = %self.member.group, %topic,
                "the topic's stream was deleted and created again; it is read from its beginning"
            );
            marks.insert(topic, Mark { made, ..Mark::default() });
        }
        self.void();
        self.deliveries.backlog.marks = marks;
        self.writer.mark_dirty();
        self.reader.read_anew(Duration::ZERO);
    }

    pub(super) fn reload(&mut self) {
        if self.record.reload(&mut self.jobs) {
            self.reader.cover_doubtful();
        }
    }

    fn on_reloaded(&mut self, result: Result<Standing>) {
        let mut again = self.record.reloaded();
        match result {
            Ok(Standing::There(record)) => {
                self.change(record);
                again |= self.reader.judge(&self.record.current, &mut self.deliveries.backlog);
            }
            Ok(Standing::Deleted) => self.over = true,
            Err(error) => {
                self.begin_outage(&error.to_string());
                if self.reader.has_doubtful() {
                    self.reader.read_later();
                }
            }
        }
        if again {
            self.reload();
        }
    }

    /// Applies a newly read record of the group.
    fn change(&mut self, record: Record) {
        let (change, changes) = self.record.replace(record);
        if change == Change::Moved {
            self.leadership.forget_marks();
        }
        if !self.leadership.leads() {
            return;
        }
        match change {
            Change::None => return self.reader.opening.soon(Duration::ZERO),
            Change::Filters => {
                let marks = &mut self.deliveries.backlog.marks;
                self.reader.repeat(checkpoint::rewind(marks, changes, &self.record.current));
            }
            // Everything held here is void.
            Change::Moved => self.void(),
        }
        self.writer.mark_dirty();
        self.reader.read_anew(Duration::ZERO);
    }

    /// Drops everything held here, because it can no longer be settled.
    fn void(&mut self) {
        self.writer.give_up(lease_lost);
        self.deliveries.void();
        self.reader.forget(BTreeMap::new());
    }

    /// Stops delivering, and releases messages that no consumer has taken; all messages when the connection closes.
    pub(super) fn stop(&mut self, closing: bool) {
        if self.deliveries.stop(&mut self.writer) {
            self.member.leave();
            self.reader.close();
        }
        if closing {
            self.deliveries.release_all(&mut self.writer);
        }
    }

    /// Ends the member: nothing is written any more.
    pub(super) fn end(mut self) {
        // Over a connection that has ended, it is unknown whether the record was written.
        let error = if self.member.client.closed.is_cancelled() { closed } else { lease_lost };
        self.writer.give_up(error);
        self.reader.close();
        self.deliveries.feed.report(Health::Stopped);
        let member = self.member.clone();
        drop(self);
        member.end();
    }

    fn begin_outage(&mut self, what: &str) {
        self.outage.begins_for(&self.member.group, &self.deliveries.feed, what);
    }

    fn end_outage(&mut self) {
        self.outage.ends_for(&self.member.group, &self.deliveries.feed);
    }
}
