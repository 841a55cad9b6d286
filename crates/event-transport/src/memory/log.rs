//! The bounded log: published messages in order, with a count of the groups and dead letters that need each one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::Start;
use crate::message::{Message, Position};

/// Approximate bytes that a message takes in addition to its own: its place in the log, in a group and on the heap.
pub(super) const OVERHEAD: usize = 512;

/// A number of messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Usage {
    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn sub(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }

    fn fits(&self, bytes: usize, limit: &Self) -> bool {
        self.messages < limit.messages && self.bytes + bytes <= limit.bytes
    }
}

/// A published message.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) message: Arc<Message>,
    pub(super) published_at: Timestamp,
    pub(super) expires: Option<Instant>,
    bytes: usize,
    /// Number of groups and dead letters that need the record.
    pins: u32,
}

/// Numbered records of all topics. The log drops the oldest record when it needs room. A dropped record that is
/// pinned still counts towards the limits until its last pin is removed.
#[derive(Debug)]
pub(super) struct Log {
    records: VecDeque<Record>,
    /// Number of the first record.
    first: u64,
    /// Pinned records that are no longer in the log, by number: their pins and bytes.
    held: HashMap<u64, (u32, usize)>,
    needed: Usage,
    total: Usage,
    limit: Usage,
}

/// Returns the number of bytes that `message` counts for.
pub(super) fn weight(message: &Message) -> usize {
    message.size() + OVERHEAD
}

impl Log {
    pub(super) fn new(limit: Usage) -> Self {
        Self {
            records: VecDeque::new(),
            first: 1,
            held: HashMap::new(),
            needed: Usage::default(),
            total: Usage::default(),
            limit,
        }
    }

    /// Returns whether a message fits after all records without pins were dropped.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.needed.fits(bytes, &self.limit)
    }

    /// Returns the usage of messages that must not be dropped.
    pub(super) fn needed(&self) -> Usage {
        self.needed
    }

    /// Reserves room for a message that is published later. Check [`Log::has_room`] first.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.evict(bytes);
        self.needed.add(bytes);
        self.total.add(bytes);
    }

    /// Frees room that [`Log::reserve`] reserved.
    pub(super) fn unreserve(&mut self, bytes: usize) {
        self.needed.sub(bytes);
        self.total.sub(bytes);
    }

    /// Adds a record that `pins` groups need and returns its number. Check [`Log::has_room`] first.
    pub(super) fn append(
        &mut self,
        message: Arc<Message>,
        published_at: Timestamp,
        expires: Option<Instant>,
        pins: u32,
    ) -> u64 {
        let bytes = weight(&message);
        self.evict(bytes);
        self.total.add(bytes);
        if pins > 0 {
            self.needed.add(bytes);
        }
        self.records.push_back(Record { message, published_at, expires, bytes, pins });
        self.end() - 1
    }

    /// Drops the oldest records until a message of `bytes` fits.
    fn evict(&mut self, bytes: usize) {
        while !self.total.fits(bytes, &self.limit) {
            let Some(oldest) = self.records.pop_front() else { return };
            if oldest.pins == 0 {
                self.total.sub(oldest.bytes);
            } else {
                self.held.insert(self.first, (oldest.pins, oldest.bytes));
            }
            self.first += 1;
        }
    }

    /// Returns the number of the oldest record in the log.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the number of the next record.
    pub(super) fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    pub(super) fn get(&self, number: u64) -> Option<&Record> {
        self.records.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Returns the number of the first record that a subscription with `start` receives.
    pub(super) fn start(&self, start: Start) -> u64 {
        match start {
            Start::New => self.end(),
            Start::Earliest => self.first(),
            Start::Time(time) => self.find_time(time),
            Start::Position(Position(at)) => {
                u64::try_from(at).unwrap_or(u64::MAX).clamp(self.first(), self.end())
            }
        }
    }

    /// Returns the number of the first record published at or after `time`.
    fn find_time(&self, time: Timestamp) -> u64 {
        let at = self.records.iter().position(|record| record.published_at >= time);
        self.first + at.unwrap_or(self.records.len()) as u64
    }

    /// Adds one pin to the record.
    pub(super) fn pin(&mut self, number: u64) {
        if let Some(at) = number.checked_sub(self.first) {
            let record = &mut self.records[at as usize];
            record.pins += 1;
            if record.pins == 1 {
                self.needed.add(record.bytes);
            }
        } else if let Some((pins, _)) = self.held.get_mut(&number) {
            *pins += 1;
        }
    }

    /// Removes one pin from the record.
    pub(super) fn unpin(&mut self, number: u64) {
        if let Some(at) = number.checked_sub(self.first) {
            let record = &mut self.records[at as usize];
            record.pins -= 1;
            if record.pins == 0 {
                self.needed.sub(record.bytes);
            }
        } else if let Some((pins, bytes)) = self.held.get_mut(&number) {
            *pins -= 1;
            if *pins == 0 {
                self.needed.sub(*bytes);
                self.total.sub(*bytes);
                self.held.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::Subject;

    fn append(log: &mut Log, pins: u32) -> Option<u64> {
        let message = Message::new(Subject::new("a").unwrap(), "", vec![0u8; 99]);
        let message = Arc::new(message);
        log.has_room(weight(&message)).then(|| log.append(message, Timestamp::now(), None, pins))
    }

    #[test]
    fn history_goes_first_and_what_is_needed_stays() {
        let mut log = Log::new(Usage { messages: 3, bytes: usize::MAX });
        assert_eq!(
            (append(&mut log, 1), append(&mut log, 0), append(&mut log, 0)),
            (Some(1), Some(2), Some(3))
        );
        assert_eq!(append(&mut log, 1), Some(4));
        assert_eq!((log.first(), log.needed().messages), (3, 2));
        assert_eq!(append(&mut log, 1), Some(5));
        assert_eq!(append(&mut log, 0), None);
        log.unpin(1);
        assert_eq!(append(&mut log, 0), Some(6));
        for number in [4, 5] {
            log.unpin(number);
        }
        assert_eq!(log.needed(), Usage::default());
    }

    #[test]
    fn bytes_bound_too() {
        let mut log = Log::new(Usage { messages: 100, bytes: 2 * (OVERHEAD + 100) });
        for _ in 0..10 {
            assert!(append(&mut log, 0).is_some());
        }
        assert_eq!(log.end() - log.first(), 2);
    }
}
