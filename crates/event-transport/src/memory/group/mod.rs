//! A durable group: its name and patterns, its members, and the queue of its unsettled entries.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::members::Members;
use self::queue::Queue;
use super::log::Log;
use crate::delivery::Token;
use crate::subject::{Group, Pattern, Subject};

mod entry;
mod members;
mod queue;

pub(super) use entry::Entry;
pub(super) use queue::{Counts, Fetched};

#[derive(Debug)]
pub(super) struct GroupState {
    /// Distinguishes this group from an earlier one in the same slot.
    pub(super) uid: u64,
    pub(super) name: Group,
    pub(super) filters: Vec<Pattern>,
    members: Members,
    queue: Queue,
}

impl GroupState {
    pub(super) fn new(uid: u64, name: Group, filters: Vec<Pattern>, keyed: bool) -> Self {
        Self { uid, name, filters, members: Members::default(), queue: Queue::new(keyed) }
    }

    pub(super) fn keyed(&self) -> bool {
        self.queue.keyed()
    }

    /// Returns the terms that a subscription may request differently: the patterns, and whether the group is keyed.
    pub(super) fn terms(&self) -> (&[Pattern], bool) {
        (&self.filters, self.keyed())
    }

    pub(super) fn matches(&self, subject: &Subject) -> bool {
        self.filters.iter().any(|filter| filter.matches(subject))
    }

    /// Changes whether entries of one key are delivered in order. Call it only while the group has no live members.
    pub(super) fn set_keyed(&mut self, keyed: bool) {
        if self.keyed() != keyed {
            self.members.reset_in_flight();
            self.queue.set_keyed(keyed);
        }
    }

    /// Adds an entry behind all other entries of its key.
    pub(super) fn add(&mut self, entry: Entry) {
        self.queue.add(entry);
    }

    /// Adds all matching records of the log from `start` on, and pins them.
    pub(super) fn add_from(&mut self, log: &mut Log, start: u64) {
        for number in start..log.end() {
            let Some(record) = log.get(number) else { continue };
            if self.matches(&record.message.subject) {
                self.add(Entry::new(number, record.message.clone(), record.published_at, record.expires));
                log.pin(number);
            }
        }
    }

    /// Removes all entries and returns them. Tokens and timers from before no longer match.
    pub(super) fn clear(&mut self) -> Vec<Entry> {
        self.members.reset_in_flight();
        self.queue.clear()
    }

    pub(super) fn counts(&self) -> Counts {
        self.queue.counts()
    }

    // Members: they join, fetch, wait, stop and leave.

    pub(super) fn join(&mut self, member: u64, connection: u64) -> Arc<Notify> {
        self.members.join(member, connection)
    }

    pub(super) fn has_member(&self, member: u64) -> bool {
        self.members.contains(member)
    }

    /// Returns the number of members that fetch entries.
    pub(super) fn live_members(&self) -> usize {
        self.members.live()
    }

    /// Leases up to `most` entries to `member` and returns the number of entries that had expired instead.
    pub(super) fn fetch(
        &mut self,
        member: u64,
        most: usize,
        now: Instant,
        log: &mut Log,
        out: &mut Vec<Fetched>,
    ) -> u64 {
        self.members.busy(member); // it is fetching now and needs no wake-up
        let before = out.len();
        let expired = self.queue.fetch(member, most, now, log, out);
        if let Some(member) = self.members.get(member) {
            member.in_flight += out.len() - before;
        }
        expired
    }

    /// Records that a member waits for an entry.
    pub(super) fn wait(&mut self, member: u64) {
        self.members.wait(member);
    }

    /// Marks the member as stopped: it fetches no more entries.
    pub(super) fn stop(&mut self, member: u64) {
        self.members.stop(member);
        self.wake_one(); // the stopped member may have consumed a wake-up for an entry that it will not fetch
    }

    /// Removes a member that has ended. Its entries in flight stay leased until `until`.
    pub(super) fn part(&mut self, member: u64, until: Instant) {
        self.stop(member);
        let Some(gone) = self.members.remove(member) else { return };
        if gone.in_flight > 0 {
            self.queue.end_leases(member, until);
        }
        self.wake_all(); // another member must watch the new timers
    }

    /// Removes the members of a connection that closed. Their entries in flight are released at once.
    pub(super) fn evict(&mut self, connection: u64) {
        while let Some(member) = self.members.of_connection(connection) {
            for index in self.queue.held_by(member) {
                self.queue.release(index);
            }
            self.stop(member);
            self.members.remove(member);
            self.wake_all();
        }
    }

    /// Wakes one waiting member when an entry is ready.
    pub(super) fn wake_one(&mut self) {
        if self.queue.has_ready() {
            self.members.wake_one();
        }
    }

    /// Wakes all waiting members, so that they check the timers again.
    pub(super) fn wake_all(&mut self) {
        self.members.wake_all();
    }

    // Settlements of leased entries.

    /// Returns the entry that `token` leases, if the lease is still valid.
    pub(super) fn leased(&self, token: Token) -> Option<u32> {
        self.queue.leased(token)
    }

    /// Removes a settled entry; the next entry of its key becomes ready.
    pub(super) fn finish(&mut self, index: u32) -> Entry {
        self.remove_in_flight(index);
        self.queue.remove(index)
    }

    /// Puts a leased entry back in its published order. It was not processed, so the attempt is not counted.
    pub(super) fn release(&mut self, index: u32) {
        self.remove_in_flight(index);
        self.queue.release(index);
    }

    /// Delays a leased entry until `at`. It was not processed, so the attempt is not counted.
    pub(super) fn defer(&mut self, index: u32, at: Instant) {
        self.remove_in_flight(index);
        self.queue.defer(index, at);
        self.wake_all(); // a member must watch the new timer
    }

    /// Puts a leased entry back for its next attempt at `at`, or at once when `at` is `None`.
    pub(super) fn retry(&mut self, index: u32, at: Option<Instant>) {
        self.remove_in_flight(index);
        self.queue.retry(index, at);
        if at.is_some() {
            self.wake_all(); // a member must watch the new timer
        }
    }

    /// Renews the lease of an entry whose member has left. A live member's lease has no end and needs no renewal.
    pub(super) fn renew(&mut self, index: u32, until: Instant) {
        self.queue.renew(index, until);
    }

    /// Counts an entry as no longer in flight at its member.
    fn remove_in_flight(&mut self, index: u32) {
        if let Some(member) = self.queue.holder(index) {
            self.members.remove_in_flight(member);
        }
    }

    // Timers.

    /// Makes due delayed entries ready and puts entries with an ended lease back.
    pub(super) fn advance(&mut self, now: Instant) {
        self.queue.advance(now);
    }

    /// Returns the time at which [`GroupState::advance`] must run next.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.queue.next_timer()
    }

    /// Removes ready entries that expired before any member fetched them, and returns their number.
    pub(super) fn sweep(&mut self, now: Instant, log: &mut Log) -> u64 {
        self.queue.sweep(now, log)
    }
}
