//! The bounded queue of records that wait to be shipped; when it is full, the least severe records are dropped first.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::record::{Dropped, LogRecord};
use super::severity::Severity;
use event_transport::sync::lock;

/// The most records that wait.
const MOST_RECORDS: usize = 8192;
/// The most bytes that wait, by [`LogRecord::weight`].
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// The number of records that makes a batch full.
pub(super) const BATCH_RECORDS: usize = 512;
/// The number of bytes that makes a batch full.
pub(super) const BATCH_BYTES: usize = 1024 * 1024;

/// The queue between the logging code and the shipper. Its lock is held only while a record is added or a batch is
/// taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Notified when a record is added to an empty queue.
    pub(super) some: Notify,
    /// Notified when a whole batch is waiting.
    pub(super) full: Notify,
}

/// One queue for each severity name, so that the least severe record is found without a search.
#[derive(Debug, Default)]
struct Waiting {
    levels: [VecDeque<(u64, LogRecord)>; 6],
    dropped: [u64; 6],
    records: usize,
    bytes: usize,
    next: u64,
}

fn level_of(severity: Severity) -> usize {
    usize::from((severity.number() - 1) / 4)
}

fn severity_of(level: usize) -> Severity {
    Severity::from(u8::try_from(level * 4 + 1).expect("six levels"))
}

impl Queue {
    /// Adds a record. A full queue drops its oldest record of the lowest level, or this record if all others are more
    /// severe.
    pub(super) fn push(&self, record: LogRecord) {
        let weight = record.weight();
        let level = level_of(record.severity);
        let mut waiting = self.lock();
        while waiting.records >= MOST_RECORDS || waiting.bytes + weight > MOST_BYTES {
            match waiting.levels.iter().position(|queue| !queue.is_empty()) {
                Some(lowest) if lowest <= level => waiting.drop_oldest(lowest),
                _ => {
                    waiting.dropped[level] += 1;
                    return;
                }
            }
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.levels[level].push_back((number, record));
        waiting.records += 1;
        waiting.bytes += weight;
        let (first, full) = (waiting.records == 1, waiting.batch_is_full());
        drop(waiting);
        if first {
            self.some.notify_one();
        }
        if full {
            self.full.notify_one();
        }
    }

    /// Counts a record that can never be shipped.
    pub(super) fn count_dropped(&self, severity: Severity) {
        self.lock().dropped[level_of(severity)] += 1;
    }

    /// Adds back the counts of a batch that was not sent.
    pub(super) fn restore(&self, dropped: &[Dropped]) {
        let mut waiting = self.lock();
        for Dropped { severity, count } in dropped {
            waiting.dropped[level_of(*severity)] += count;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.records == 0 && waiting.dropped.iter().all(|count| *count == 0)
    }

    pub(super) fn batch_is_full(&self) -> bool {
        self.lock().batch_is_full()
    }

    /// Takes a batch in the order in which the records arrived, and the counts of the records dropped before it.
    pub(super) fn take(&self) -> (Vec<LogRecord>, Vec<Dropped>) {
        let mut waiting = self.lock();
        let mut batch = Vec::with_capacity(waiting.records.min(BATCH_RECORDS));
        let mut bytes = 0;
        while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let first = |queue: &VecDeque<(u64, LogRecord)>| queue.front().map(|(number, _)| *number);
            let oldest = (0..6).filter_map(|level| Some((first(&waiting.levels[level])?, level))).min();
            let Some((_, record)) = oldest.and_then(|(_, level)| waiting.levels[level].pop_front()) else {
                break;
            };
            let weight = record.weight();
            waiting.records -= 1;
            waiting.bytes -= weight;
            bytes += weight;
            batch.push(record);
        }
        let dropped = std::mem::take(&mut waiting.dropped);
        let counts = dropped.into_iter().enumerate().filter(|(_, count)| *count > 0);
        (batch, counts.map(|(level, count)| Dropped { severity: severity_of(level), count }).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // A panic in another thread must not stop logging.
        lock(&self.waiting)
    }
}

impl Waiting {
    fn batch_is_full(&self) -> bool {
        self.records >= BATCH_RECORDS || self.bytes >= BATCH_BYTES
    }

    fn drop_oldest(&mut self, level: usize) {
        if let Some((_, record)) = self.levels[level].pop_front() {
            self.records -= 1;
            self.bytes -= record.weight();
            self.dropped[level] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(level: &str, message: usize) -> LogRecord {
        LogRecord::new("", level, message.to_string())
    }

    #[test]
    fn a_batch_keeps_the_order_over_all_levels() {
        let queue = Queue::default();
        for (n, level) in ["info", "error", "debug", "info", "fatal"].iter().enumerate() {
            queue.push(record(level, n));
        }
        let (batch, dropped) = queue.take();
        let order: Vec<_> = batch.iter().map(|record| record.message.as_str()).collect();
        assert_eq!((order.join(""), dropped.len()), ("01234".into(), 0));
        assert!(queue.is_empty());
    }

    #[test]
    fn when_it_is_full_the_lowest_level_goes_first_and_is_counted() {
        let queue = Queue::default();
        for n in 0..MOST_RECORDS {
            queue.push(record(if n % 2 == 0 { "debug" } else { "info" }, n));
        }
        for n in 0..10 {
            queue.push(record("error", n));
        }
        queue.push(record("trace", 0));
        queue.push(record("debug", 1));
        let (mut errors, mut first_debug, mut all_dropped) = (0, None, Vec::new());
        while !queue.is_empty() {
            let (batch, dropped) = queue.take();
            assert!(batch.len() <= BATCH_RECORDS);
            errors += batch.iter().filter(|record| record.severity == Severity::ERROR).count();
            first_debug = first_debug
                .or(batch.iter().find(|r| r.severity == Severity::DEBUG).map(|r| r.message.clone()));
            all_dropped.extend(dropped);
        }
        assert_eq!(errors, 10);
        assert_eq!(first_debug.as_deref(), Some("22"), "the oldest of the lowest went");
        let expected = [
            Dropped { severity: Severity::TRACE, count: 1 },
            Dropped { severity: Severity::DEBUG, count: 11 },
        ];
        assert_eq!(all_dropped, expected);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let queue = Queue::default();
        for _ in 0..100 {
            queue.push(LogRecord::new("", "info", "x".repeat(1024 * 1024)));
        }
        assert!(queue.lock().bytes <= MOST_BYTES);
        let (batch, dropped) = queue.take();
        assert_eq!(batch.len(), 1, "one is a batch by its bytes");
        assert_eq!(dropped[0].count as usize + batch.len() + queue.lock().records, 100);
    }
}
