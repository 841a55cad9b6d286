//! Order per key within the active member: the keys with a message in flight, and the messages that wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use smol_str::SmolStr;
use tokio::sync::Notify;

use super::leased::Leased;

use crate::sync::lock;

/// The highest number of fresh messages in one claim.
const MOST: usize = 256;

/// The order per key of one member.
#[derive(Debug)]
pub(super) struct Lanes {
    queue: Mutex<KeyQueue>,
    /// Signalled when a message of a key was settled: others may be delivered now.
    pub(super) changed: Notify,
    /// The highest number of messages that may wait in memory for others of their key.
    pub(super) room: usize,
}

impl Lanes {
    /// For a member with at most `max_in_flight` unsettled deliveries.
    pub(super) fn new(max_in_flight: usize) -> Self {
        let room = max_in_flight.saturating_mul(4).clamp(256, 4096);
        Self { queue: Mutex::default(), changed: Notify::new(), room }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, KeyQueue> {
        lock(&self.queue)
    }

    /// To be called when the message of `key` in flight has been written back to the file or settled there: the next
    /// message of the key may be claimed.
    pub(super) fn release(&self, key: &SmolStr) {
        self.lock().release(key);
        self.changed.notify_one();
    }
}

/// The keys with a message in flight. Idle keys need no memory.
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    lanes: HashMap<SmolStr, Lane>,
    parked: usize,
    /// Messages that may be delivered now: no earlier message of their key is in flight.
    ready: VecDeque<Leased>,
    /// The time since when the number of waiting messages has been at its limit.
    full_since: Option<Instant>,
}

/// The longest time for which messages that wait for busy keys stop the fetch of fresh messages. After it, further
/// messages of busy keys are written to the file, which costs a transaction each: too expensive for keys that are only
/// busy, right for keys that are stuck.
const STUCK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Lane {
    /// Later messages of the key wait in the file, so every message that follows must be written there too.
    in_file: bool,
    waiting: VecDeque<Leased>,
}

/// The decision about a fresh message of a key.
pub(super) enum Turn {
    /// The key was idle: the message may be delivered, and the key is busy from now on.
    Go(Leased),
    /// It waits in memory.
    Waits,
    /// It must wait in the file.
    File(Leased),
}

impl KeyQueue {
    /// Whether the key has a message in flight.
    pub(super) fn is_busy(&self, key: &str) -> bool {
        self.lanes.contains_key(key)
    }

    /// Adds a message that was claimed from the file: it is ready, or waits for one of the same key that was claimed
    /// with it.
    pub(super) fn take_row(&mut self, key: &SmolStr, parked: Leased) {
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

    /// The number of further messages that may wait in memory.
    pub(super) fn room(&self, room: usize) -> usize {
        room.saturating_sub(self.parked + self.ready.len())
    }

    /// Decides about a fresh message. `in_file` is true if earlier messages of the key are in the file; `room` is the
    /// highest number of messages that may wait in memory.
    pub(super) fn turn(&mut self, key: &SmolStr, parked: Leased, in_file: bool, room: usize) -> Turn {
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

    /// The message of `key` in flight is settled for good: the next one in memory becomes ready. Returns `false` when
    /// later messages are in the file, so that the file must be checked before the key is idle.
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

    /// The number of fresh messages to fetch, if up to `room` messages may wait and `free` may be delivered.
    pub(super) fn wanted(&mut self, free: usize, room: usize) -> usize {
        if self.parked + self.ready.len() < room {
            self.full_since = None;
            return free.max(room - self.parked - self.ready.len()).min(MOST);
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < STUCK { 0 } else { free }
    }

    /// Adds a message that may be delivered as soon as a permit is free.
    pub(super) fn defer(&mut self, parked: Leased) {
        self.ready.push_back(parked);
    }

    /// Removes the next message that may be delivered.
    pub(super) fn ready(&mut self) -> Option<Leased> {
        self.ready.pop_front()
    }

    /// Whether a message may be delivered.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Removes the messages that wait for `key`: the message in flight goes back to the file, and they must follow it.
    pub(super) fn unpark(&mut self, key: &str) -> VecDeque<Leased> {
        let Some(lane) = self.lanes.get_mut(key) else { return VecDeque::new() };
        lane.in_file = true;
        self.parked -= lane.waiting.len();
        std::mem::take(&mut lane.waiting)
    }

    /// Forgets `key`: all its messages are in the file, and the first one there may be claimed.
    pub(super) fn release(&mut self, key: &str) {
        self.lanes.remove(key);
    }

    /// Removes all waiting messages.
    pub(super) fn drain(&mut self) -> Vec<Leased> {
        self.parked = 0;
        let mut all: Vec<_> = self.ready.drain(..).collect();
        for lane in self.lanes.values_mut() {
            lane.in_file = true;
            all.extend(lane.waiting.drain(..));
        }
        all
    }
}
