//! Order per key within the active member: the keys with a message in flight, and the messages that wait for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use smol_str::SmolStr;
use tokio::sync::Notify;

use super::leased::Leased;
use super::postponed::Postponed;
use event_transport::sync::lock;

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
    /// Keys that were released since the last claim began: rows of theirs may have come into the file meanwhile.
    released: HashSet<SmolStr>,
    /// The keys whose later messages stay in the log.
    pub(super) postponed: Postponed,
    pace: Pace,
}

/// The times of looking ahead in the log for messages of other keys.
#[derive(Debug, Default)]
struct Pace {
    /// The busy key at whose message the last claim stopped.
    stopped: Option<SmolStr>,
    /// The time since when messages of busy keys have found no room in memory.
    full_since: Option<Instant>,
    /// The time before which no fresh messages are claimed.
    pause: Option<Instant>,
}

/// The longest time for which messages that wait for busy keys stop the fetch of fresh messages. After it, further
/// messages of busy keys are postponed, so that messages of other keys are found behind them.
const STUCK: Duration = Duration::from_secs(1);
/// The pause for each postponed message of a claim that found nothing to deliver: reading ahead costs a few percent of a
/// core.
const PAUSE: Duration = Duration::from_micros(25);

#[derive(Debug, Default)]
struct Lane {
    /// Later messages of the key wait in the file, so every message that follows must be written there too.
    in_file: bool,
    waiting: VecDeque<Leased>,
}

/// The highest number of messages of one key, and of keys, whose postponed messages are claimed together.
const MOST: usize = 256;
const KEYS: usize = 64;

/// A key whose postponed messages are claimed next.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub(super) key: SmolStr,
    /// The row of `lease` that has their positions.
    pub(super) row: i64,
    /// The highest number of messages.
    pub(super) most: usize,
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

    /// The number of messages that may be delivered.
    pub(super) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Whether the messages of `key` wait in the file, and so must every message that follows.
    pub(super) fn is_in_file(&self, key: &str) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.in_file)
    }

    /// Whether messages of busy keys have stopped the fetch for so long that they are postponed.
    pub(super) fn looks_ahead(&self) -> bool {
        self.pace.full_since.is_some_and(|since| since.elapsed() >= STUCK)
    }

    /// Whether the message at which the last claim stopped would stop the next one, too.
    pub(super) fn is_stopped(&self) -> bool {
        self.pace.stopped.as_ref().is_some_and(|key| self.is_busy(key))
    }

    /// A claim stopped at a message of the busy key `key`, or at none. `full` is true if there is no room in memory.
    pub(super) fn stop(&mut self, key: Option<SmolStr>, full: bool) {
        let since = self.pace.full_since;
        self.pace.full_since = match key {
            Some(_) => since.or_else(|| Some(Instant::now())),
            None => since.filter(|_| full),
        };
        self.pace.stopped = key;
    }

    /// A claim has found nothing to deliver and has postponed `messages` messages.
    pub(super) fn pause(&mut self, messages: usize) {
        self.pace.pause = Some(Instant::now() + PAUSE * u32::try_from(messages).unwrap_or(u32::MAX));
    }

    /// Whether no fresh messages are claimed now.
    pub(super) fn is_paused(&self) -> bool {
        self.pace.pause.is_some_and(|until| until > Instant::now())
    }

    /// The time at which to claim fresh messages, though nothing wakes the member.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let stuck = self.pace.full_since.map(|since| since + STUCK);
        self.pace.pause.into_iter().chain(stuck).filter(|at| *at > now).min()
    }

    /// Continues with what is known of the file.
    pub(super) fn set_postponed(&mut self, postponed: Postponed) {
        let keys = postponed.keys();
        self.postponed = postponed;
        keys.iter().for_each(|key| self.resume(key));
    }

    /// Lets the postponed messages of `key` be claimed, if none of its messages waits in memory or in the file.
    pub(super) fn resume(&mut self, key: &str) {
        if self.lanes.get(key).is_none_or(|lane| lane.waiting.is_empty() && !lane.in_file) {
            self.postponed.set_due(key);
        }
    }

    /// The keys whose postponed messages are claimed next, each with the row of their positions and the highest number
    /// of messages. `slots` messages may be delivered now, and `room` may wait in memory.
    pub(super) fn due(&mut self, slots: usize, room: usize) -> Vec<Due> {
        self.begin_claim();
        let mut keys = Vec::new();
        while keys.len() < KEYS
            && let Some((key, row)) = self.postponed.next_due()
        {
            // When it is released, it is due again.
            if !self.is_in_file(&key) {
                keys.push((key, row));
            }
        }
        let (mut slots, left) = (slots.saturating_sub(self.ready.len()), self.room(room));
        // Fewer are not worth a transaction.
        let share = if left >= room / 4 { left / keys.len().max(1) } else { 0 };
        let mut due = Vec::new();
        for (key, row) in keys {
            // An idle key needs no room in memory for a message that is delivered at once.
            let idle = !self.is_busy(&key) && slots > 0;
            match share.clamp(usize::from(idle), MOST) {
                0 => self.postponed.set_due(&key),
                most => {
                    slots -= usize::from(idle);
                    due.push(Due { key, row, most });
                }
            }
        }
        due
    }

    /// Decides about a fresh message. `in_file` is true if earlier messages of the key are in the file; `room` is the
    /// highest number of messages that may wait in memory.
    pub(super) fn turn(&mut self, key: &SmolStr, parked: Leased, in_file: bool, room: usize) -> Turn {
        match self.lanes.get_mut(key) {
            None if in_file || self.released.contains(key) => Turn::File(parked),
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
                self.resume(key);
                true
            }
            None if lane.in_file => false,
            None => {
                self.lanes.remove(key);
                self.resume(key);
                true
            }
        }
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

    /// To be called before messages are chosen for a claim.
    pub(super) fn begin_claim(&mut self) {
        self.released.clear();
    }

    /// Forgets `key`: all its messages are in the file, and the first one there may be claimed.
    pub(super) fn release(&mut self, key: &str) {
        if let Some((key, _)) = self.lanes.remove_entry(key) {
            self.released.insert(key);
        }
        self.resume(key);
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
