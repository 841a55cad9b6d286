//! Order per key within the one member that works: which keys have a message out, and what waits behind it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use smol_str::SmolStr;

use super::member::{LeaseSlot, StoredMessage};

/// Most fresh messages of one claim.
const MOST: usize = 256;

/// Keys with a message out. Others need no memory.
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    lanes: HashMap<SmolStr, Lane>,
    parked: usize,
    /// Waiting messages whose key has become free.
    ready: VecDeque<Parked>,
    /// Since when as many wait as may.
    full_since: Option<Instant>,
}

/// How long messages behind busy keys may hold up fresh ones of other keys. After that they go to the file, which
/// costs a transaction each: too much for keys that are only busy, right for those that are stuck.
const STUCK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Lane {
    /// Later messages of the key wait in the file, so that all that follow must go there too.
    in_file: bool,
    waiting: VecDeque<Parked>,
}

/// A message in our hands behind another of its key.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) held: LeaseSlot,
    pub(super) entry: StoredMessage,
}

/// What to do with a fresh message of a key.
pub(super) enum Turn {
    /// The key is free: it is this message's now.
    Go(Parked),
    /// It waits in memory.
    Waits,
    /// It must wait in the file.
    File(Parked),
}

impl KeyQueue {
    /// Whether the key has a message out.
    pub(super) fn is_busy(&self, key: &str) -> bool {
        self.lanes.contains_key(key)
    }

    /// A message that came from the file: it goes, or follows one of its key that came with it.
    pub(super) fn take_row(&mut self, key: &SmolStr, parked: Parked) {
        match self.lanes.get_mut(key) {
            Some(lane) => {
                lane.waiting.push_back(parked);
                self.parked += 1;
            }
            None => {
                self.lanes.insert(key.clone(), Lane { in_file: true, waiting: VecDeque::new() });
                self.ready.push_back(parked);
            }
        }
    }

    /// How many more may wait in memory.
    pub(super) fn room(&self, room: usize) -> usize {
        room.saturating_sub(self.parked + self.ready.len())
    }

    /// A fresh message's turn; `in_file` says whether the file holds earlier ones of the key, `room` how many may
    /// wait in memory.
    pub(super) fn turn(&mut self, key: &SmolStr, parked: Parked, in_file: bool, room: usize) -> Turn {
        match self.lanes.get_mut(key) {
            None if in_file => Turn::File(parked),
            None => {
                self.lanes.insert(key.clone(), Lane::default());
                Turn::Go(parked)
            }
            Some(lane) if lane.in_file || in_file => {
                lane.in_file = true;
                Turn::File(parked)
            }
            Some(lane) if self.parked < room => {
                lane.waiting.push_back(parked);
                self.parked += 1;
                Turn::Waits
            }
            Some(lane) => {
                lane.in_file = true;
                Turn::File(parked)
            }
        }
    }

    /// The message of `key` that was out is done; the next in memory becomes ready. `false` when the file must be
    /// looked at before the key is free.
    pub(super) fn finish(&mut self, key: &str) -> bool {
        let Some(lane) = self.lanes.get_mut(key) else { return true };
        match lane.waiting.pop_front() {
            Some(next) => {
                self.parked -= 1;
                self.ready.push_back(next);
                true
            }
            None if lane.in_file => false,
            None => {
                self.lanes.remove(key);
                true
            }
        }
    }

    /// How many fresh messages may be fetched while up to `room` may wait and `free` may go.
    pub(super) fn wanted(&mut self, free: usize, room: usize) -> usize {
        if self.parked + self.ready.len() < room {
            self.full_since = None;
            return free.max(room - self.parked - self.ready.len()).min(MOST);
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < STUCK { 0 } else { free }
    }

    /// It may go, as soon as there is a slot.
    pub(super) fn defer(&mut self, parked: Parked) {
        self.ready.push_back(parked);
    }

    /// A waiting message whose key is its own now.
    pub(super) fn ready(&mut self) -> Option<Parked> {
        self.ready.pop_front()
    }

    /// Whether a waiting message could go.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes what waits behind `key`: its first message goes back to the file, and they follow.
    pub(super) fn unpark(&mut self, key: &str) -> VecDeque<Parked> {
        let Some(lane) = self.lanes.get_mut(key) else { return VecDeque::new() };
        lane.in_file = true;
        self.parked -= lane.waiting.len();
        std::mem::take(&mut lane.waiting)
    }

    /// The file knows all about `key`: it is free for whoever is first there.
    pub(super) fn release(&mut self, key: &str) {
        self.lanes.remove(key);
    }

    /// Takes all that waits.
    pub(super) fn drain(&mut self) -> Vec<Parked> {
        self.parked = 0;
        let mut all: Vec<_> = self.ready.drain(..).collect();
        for lane in self.lanes.values_mut() {
            lane.in_file = true;
            all.extend(lane.waiting.drain(..));
        }
        all
    }
}
