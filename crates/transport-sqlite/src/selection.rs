//! Selects the fresh messages that a member claims next, and those that it postpones.

use std::collections::{HashMap, HashSet};

use smol_str::SmolStr;

use super::error::Sql;
use super::keyed::KeyQueue;
use super::records::Stored;
use super::scan::Scan;

/// The highest number of fresh messages in one claim of a keyed group.
const MOST: usize = 256;
/// The highest number of messages that one claim postpones.
const MOST_POSTPONED: usize = 4096;

/// The fresh messages of one claim.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) taken: Vec<Stored>,
    /// The positions of the postponed messages, by key.
    pub(super) postponed: HashMap<SmolStr, Vec<i64>>,
    /// The number of postponed messages, of messages that may be delivered now, and of those that have expired.
    pub(super) behind: usize,
    pub(super) going: usize,
    pub(super) expired: u64,
}

/// The place of a message in a [`Selection`].
enum Place {
    Now,
    Waits,
    Behind,
    /// There is no room for it; `true` if its key is busy.
    Stop(bool),
}

impl Selection {
    /// Up to `most` messages of a group that is not keyed, at the time `now`.
    pub(super) fn any(scan: &mut Scan, most: usize, now: i64) -> Sql<Self> {
        let mut selection = Self::default();
        while selection.taken.len() < most
            && let Some(stored) = scan.take()?
        {
            if stored.is_expired(now) {
                selection.expired += 1;
            } else {
                selection.taken.push(stored);
            }
        }
        Ok(selection)
    }

    /// Messages of a keyed group, of which `slots` may be delivered now and `room` may wait in memory. `None` if a
    /// claim would not be worth it before earlier messages are settled.
    pub(super) fn keyed(
        queue: &mut KeyQueue,
        scan: &mut Scan,
        slots: usize,
        room: usize,
        now: i64,
    ) -> Sql<Option<Self>> {
        let space = queue.room(room);
        if !queue.looks_ahead() && space < room / 4 && queue.is_stopped() {
            return Ok(None);
        }
        queue.begin_claim();
        let slots = slots.saturating_sub(queue.ready_count());
        let mut selection = Self::default();
        let mut busy = HashSet::new();
        let mut waiting = 0;
        let mut stop = None;
        while selection.taken.len() < MOST && selection.behind < MOST_POSTPONED {
            let Some(stored) = scan.take()? else { break };
            if stored.is_expired(now) {
                selection.expired += 1;
                continue;
            }
            let key = stored.message.key.clone();
            match selection.place(queue, key.as_ref(), &busy, slots, space.saturating_sub(waiting)) {
                Place::Now => selection.going += 1,
                Place::Waits => waiting += 1,
                Place::Behind => {
                    selection.postpone(key.unwrap_or_default(), stored.seq);
                    continue;
                }
                Place::Stop(is_busy) => {
                    stop = Some(key.filter(|_| is_busy));
                    scan.put_back(vec![stored]);
                    break;
                }
            }
            busy.extend(key);
            selection.taken.push(stored);
        }
        let is_stopped = stop.is_some();
        queue.stop(stop.flatten(), waiting >= space);
        // A claim is a transaction: it waits until there is room for more messages.
        let small = waiting < room / 4 && waiting == selection.taken.len();
        if is_stopped && small && selection.behind == 0 && selection.expired == 0 {
            scan.put_back(selection.taken);
            return Ok(None);
        }
        Ok(Some(selection))
    }

    fn place(
        &self,
        queue: &KeyQueue,
        key: Option<&SmolStr>,
        busy: &HashSet<SmolStr>,
        slots: usize,
        space: usize,
    ) -> Place {
        let Some(key) = key else { return self.now(slots, space) };
        let room = || queue.postponed.has_room(self.postponed.len() + 1);
        if queue.postponed.has(key) || self.postponed.contains_key(key) {
            return Place::Behind;
        }
        if queue.is_in_file(key) {
            return if room() { Place::Behind } else { Place::Waits };
        }
        if !queue.is_busy(key) && !busy.contains(key) {
            return self.now(slots, space);
        }
        match space {
            0 if !queue.looks_ahead() => Place::Stop(true),
            0 if room() => Place::Behind,
            _ => Place::Waits,
        }
    }

    /// The place of a message that need not wait for another.
    fn now(&self, slots: usize, space: usize) -> Place {
        match self.going < slots {
            true => Place::Now,
            false if space > 0 => Place::Waits,
            false => Place::Stop(false),
        }
    }

    fn postpone(&mut self, key: SmolStr, seq: i64) {
        self.postponed.entry(key).or_default().push(seq);
        self.behind += 1;
    }

    /// Whether it has no message.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.behind == 0 && self.expired == 0
    }

    /// Postpones the messages of the keys in `in_file`, whose earlier messages have rows of their own.
    pub(super) fn postpone_behind(&mut self, queue: &KeyQueue, in_file: &HashSet<String>) {
        for stored in std::mem::take(&mut self.taken) {
            match &stored.message.key {
                Some(key)
                    if in_file.contains(key.as_str())
                        && queue.postponed.has_room(self.postponed.len() + 1) =>
                {
                    // Later messages of the key may be postponed already: the positions ascend.
                    let seqs = self.postponed.entry(key.clone()).or_default();
                    let place = seqs.partition_point(|seq| *seq < stored.seq);
                    seqs.insert(place, stored.seq);
                    self.behind += 1;
                }
                _ => self.taken.push(stored),
            }
        }
    }
}
