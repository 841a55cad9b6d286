//! The unsettled entries of a group in the order of delivery: ready entries, one list per key, leases and timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use slab::Slab;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::entry::{Entry, NONE, State};
use crate::delivery::Token;
use crate::memory::log::Log;
use crate::message::Message;

/// Entries of one key, linked from head to tail; only the head may be delivered.
#[derive(Debug)]
struct Lane {
    head: u32,
    tail: u32,
}

/// Makes a delayed entry ready, or ends a lease.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    at: Instant,
    index: u32,
    generation: u32,
}

/// A fetched entry on its way to a consumer.
#[derive(Debug)]
pub(in crate::memory) struct Fetched {
    pub(in crate::memory) message: Arc<Message>,
    pub(in crate::memory) token: Token,
    pub(in crate::memory) number: u64,
    pub(in crate::memory) attempt: u32,
    pub(in crate::memory) published_at: Timestamp,
    pub(in crate::memory) replayed: bool,
}

/// Number of entries in each state, and the publication time of the oldest one.
#[derive(Debug, Default)]
pub(in crate::memory) struct Counts {
    pub(in crate::memory) waiting: usize,
    pub(in crate::memory) in_flight: usize,
    pub(in crate::memory) delayed: usize,
    pub(in crate::memory) oldest: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct Queue {
    keyed: bool,
    entries: Slab<Entry>,
    ready: VecDeque<u32>,
    lanes: HashMap<SmolStr, Lane>,
    timers: BinaryHeap<Reverse<Timer>>,
    generation: u32,
}

impl Queue {
    pub(super) fn new(keyed: bool) -> Self {
        Self {
            keyed,
            entries: Slab::new(),
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            timers: BinaryHeap::new(),
            generation: 0,
        }
    }

    pub(super) fn keyed(&self) -> bool {
        self.keyed
    }

    /// Changes whether entries of one key are delivered in order. All entries wait again; their leases end.
    pub(super) fn set_keyed(&mut self, keyed: bool) {
        self.keyed = keyed;
        let mut entries = self.clear();
        entries.sort_by_key(|entry| entry.number);
        for mut entry in entries {
            entry.state = State::Waiting;
            self.add(entry);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds an entry behind all other entries of its key.
    pub(super) fn add(&mut self, mut entry: Entry) {
        entry.next = NONE;
        let key = if self.keyed { entry.message.key.clone() } else { None };
        let index = self.entries.insert(entry) as u32;
        let Some(key) = key else { return self.ready.push_back(index) };
        match self.lanes.get_mut(&key) {
            Some(lane) => {
                self.entries[lane.tail as usize].next = index;
                lane.tail = index;
            }
            None => {
                self.lanes.insert(key, Lane { head: index, tail: index });
                self.ready.push_back(index);
            }
        }
    }

    /// Removes all entries and returns them. Tokens and timers from before no longer match.
    pub(super) fn clear(&mut self) -> Vec<Entry> {
        self.ready.clear();
        self.lanes.clear();
        self.timers.clear();
        // The generation is not reset, so a token from before the clear does not match an entry that reuses its slot.
        self.entries.drain().collect()
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
        let mut expired = 0;
        let mut wall = None;
        let start = out.len();
        while out.len() - start < most {
            let Some(index) = self.ready.pop_front() else { break };
            let entry = &mut self.entries[index as usize];
            if entry.expired(now) {
                expired += 1;
                log.unpin(self.remove(index).number);
                continue;
            }
            self.generation = self.generation.wrapping_add(1);
            entry.generation = self.generation;
            entry.attempt += 1;
            entry.first_attempt_at.get_or_insert_with(|| *wall.get_or_insert_with(Timestamp::now));
            entry.state = State::InFlight { member, lease_until: None };
            out.push(Fetched {
                message: entry.message.clone(),
                token: u64::from(entry.generation) << 32 | u64::from(index),
                number: entry.number,
                attempt: entry.attempt,
                published_at: entry.published_at,
                replayed: entry.replayed,
            });
        }
        expired
    }

    /// Returns the entry that `token` leases, if the lease is still valid.
    pub(super) fn leased(&self, token: Token) -> Option<u32> {
        let index = token as u32;
        let entry = self.entries.get(index as usize)?;
        let owned = entry.generation == (token >> 32) as u32 && matches!(entry.state, State::InFlight { .. });
        owned.then_some(index)
    }

    /// Returns the member that has the entry in flight.
    pub(super) fn holder(&self, index: u32) -> Option<u64> {
        match self.entries[index as usize].state {
            State::InFlight { member, .. } => Some(member),
            State::Waiting | State::Delayed => None,
        }
    }

    /// Returns the entries that `member` has in flight.
    pub(super) fn held_by(&self, member: u64) -> Vec<u32> {
        (self.entries.iter())
            .filter(|(_, entry)| matches!(entry.state, State::InFlight { member: at, .. } if at == member))
            .map(|(index, _)| index as u32)
            .collect()
    }

    /// Ends the leases of a member that has left, at `until`.
    pub(super) fn end_leases(&mut self, member: u64, until: Instant) {
        for (index, entry) in &mut self.entries {
            if let State::InFlight { member: at, lease_until } = &mut entry.state
                && *at == member
            {
                *lease_until = Some(until);
                let generation = entry.generation;
                self.timers.push(Reverse(Timer { at: until, index: index as u32, generation }));
            }
        }
    }

    /// Renews the lease of an entry whose member has left. A live member's lease has no end and needs no renewal.
    pub(super) fn renew(&mut self, index: u32, until: Instant) {
        if let State::InFlight { lease_until: Some(at), .. } = &mut self.entries[index as usize].state {
            *at = until;
        }
    }

    /// Puts a leased entry back in its published order. It was not processed, so the attempt is not counted.
    pub(super) fn release(&mut self, index: u32) {
        self.entries[index as usize].attempt -= 1;
        self.put_back(index);
    }

    /// Delays a leased entry until `at`. It was not processed, so the attempt is not counted.
    pub(super) fn defer(&mut self, index: u32, at: Instant) {
        self.entries[index as usize].attempt -= 1;
        self.retry(index, Some(at));
    }

    /// Puts a leased entry back for its next attempt at `at`, or at once when `at` is `None`.
    pub(super) fn retry(&mut self, index: u32, at: Option<Instant>) {
        self.generation = self.generation.wrapping_add(1);
        let entry = &mut self.entries[index as usize];
        entry.generation = self.generation;
        match at {
            Some(at) => {
                entry.state = State::Delayed;
                self.timers.push(Reverse(Timer { at, index, generation: self.generation }));
            }
            None => {
                entry.state = State::Waiting;
                self.ready.push_back(index);
            }
        }
    }

    /// Makes due delayed entries ready and puts entries with an ended lease back.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(Reverse(timer)) = self.timers.peek() {
            if timer.at > now {
                break;
            }
            let Some(Reverse(timer)) = self.timers.pop() else { break };
            let Some(entry) = self.entries.get_mut(timer.index as usize) else { continue };
            if entry.generation != timer.generation {
                continue;
            }
            match entry.state {
                State::Waiting => {}
                State::Delayed => {
                    entry.state = State::Waiting;
                    self.ready.push_back(timer.index);
                }
                State::InFlight { lease_until: Some(at), .. } if at > now => {
                    self.timers.push(Reverse(Timer { at, ..timer }));
                }
                // Its member has left, so no member counts the entry as in flight.
                State::InFlight { .. } => self.put_back(timer.index),
            }
        }
    }

    /// Returns the time at which [`Queue::advance`] must run next.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse(timer)| timer.at)
    }

    /// Removes ready entries that expired before any member fetched them, and returns their number.
    pub(super) fn sweep(&mut self, now: Instant, log: &mut Log) -> u64 {
        let mut expired = 0;
        let mut left = self.ready.len();
        // The removal of a key's first entry appends the next one to `ready`, so that entry is checked as well.
        while left > 0 {
            left -= 1;
            let Some(index) = self.ready.pop_front() else { break };
            if self.entries[index as usize].expired(now) {
                let before = self.ready.len();
                log.unpin(self.remove(index).number);
                left += self.ready.len() - before;
                expired += 1;
            } else {
                self.ready.push_back(index);
            }
        }
        expired
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (_, entry) in &self.entries {
            match entry.state {
                State::Waiting => counts.waiting += 1,
                State::Delayed => {
                    counts.waiting += 1;
                    counts.delayed += 1;
                }
                State::InFlight { .. } => counts.in_flight += 1,
            }
            counts.oldest = Some(counts.oldest.map_or(entry.published_at, |at| at.min(entry.published_at)));
        }
        counts
    }

    /// Makes an entry ready again, among the first entries, in the order of publication.
    fn put_back(&mut self, index: u32) {
        self.entries[index as usize].state = State::Waiting;
        let number = self.entries[index as usize].number;
        let at =
            (self.ready.iter()).take_while(|before| self.entries[**before as usize].number < number).count();
        self.ready.insert(at, index);
    }

    /// Removes an entry that is neither linked behind another one nor in `ready`; the next entry of its key becomes
    /// ready.
    pub(super) fn remove(&mut self, index: u32) -> Entry {
        let entry = self.entries.remove(index as usize);
        if self.keyed
            && let Some(key) = &entry.message.key
        {
            if entry.next == NONE {
                self.lanes.remove(key);
            } else if let Some(lane) = self.lanes.get_mut(key) {
                lane.head = entry.next;
                self.ready.push_back(entry.next);
            }
        }
        entry
    }
}
