//! Keyed groups: the unsettled messages of a topic at its active member, their order within each key, and the times of
//! their retries.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::codec::{Entry, EntryId};
use super::keys::Source;
use event_transport::key_queue::KeyQueue;
use event_transport::message::Message;

/// Maximum number of messages that wait in memory behind busy keys, and of their bytes. Beyond it no new entries are
/// read.
const MOST: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;

/// A message that is not settled.
pub(super) struct Item {
    pub(super) source: Arc<Source>,
    pub(super) id: EntryId,
    pub(super) message: Arc<Message>,
    pub(super) origin: EntryId,
    pub(super) replayed: bool,
    pub(super) ill_named: bool,
    /// Attempts made.
    pub(super) made: u32,
    not_before: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Backlog {
    items: HashMap<u64, Item>,
    lanes: KeyQueue<u64>,
    ready: VecDeque<u64>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    bytes: usize,
}

impl Backlog {
    /// Adds an entry, behind the earlier ones of its key.
    pub(super) fn add(
        &mut self,
        number: u64,
        source: &Arc<Source>,
        entry: Entry,
        made: u32,
        not_before: Option<Instant>,
    ) {
        let key = entry.message.key.clone();
        self.bytes += entry.message.size();
        let item = Item {
            source: source.clone(),
            id: entry.id,
            message: Arc::new(entry.message),
            origin: entry.origin,
            replayed: entry.replayed,
            ill_named: entry.ill_named,
            made,
            not_before,
        };
        self.items.insert(number, item);
        let head = match &key {
            Some(key) => self.lanes.offer(key, number),
            None => Some(number),
        };
        if let Some(number) = head {
            self.go(number, false);
        }
    }

    /// Makes an item ready, now or at its time.
    fn go(&mut self, number: u64, first: bool) {
        match self.items.get(&number).and_then(|item| item.not_before) {
            Some(at) => self.delayed.push(Reverse((at, number))),
            None if first => self.ready.push_front(number),
            None => self.ready.push_back(number),
        }
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.items.contains_key(&number)
    }

    pub(super) fn item(&self, number: u64) -> Option<&Item> {
        self.items.get(&number)
    }

    /// Removes an item that is settled for good: the next one of its key may be delivered.
    pub(super) fn finish(&mut self, number: u64) {
        let Some(item) = self.items.remove(&number) else { return };
        self.bytes -= item.message.size();
        if let Some(key) = &item.message.key
            && let Some(next) = self.lanes.finish(key)
        {
            self.go(next, false);
        }
    }

    /// Schedules another attempt; the later messages of its key wait.
    pub(super) fn again(&mut self, number: u64, made: u32, at: Option<Instant>) {
        let Some(item) = self.items.get_mut(&number) else { return };
        item.made = made;
        item.not_before = at;
        self.go(number, true);
    }

    /// Returns the next item that may be delivered.
    pub(super) fn next(&mut self, now: Instant) -> Option<u64> {
        while let Some(Reverse((at, number))) = self.delayed.peek().copied() {
            if at > now {
                break;
            }
            self.delayed.pop();
            if let Some(item) = self.items.get_mut(&number) {
                item.not_before = None;
                self.ready.push_front(number);
            }
        }
        self.ready.pop_front()
    }

    /// Makes an item ready again that could not be delivered.
    pub(super) fn put_back(&mut self, number: u64) {
        self.ready.push_front(number);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether more entries may be read.
    pub(super) fn has_space(&self) -> bool {
        self.items.len() < MOST && self.bytes < MOST_BYTES
    }

    /// Whether nothing is left, including keys without messages.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.lanes.waiting() == 0 && self.bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use smol_str::SmolStr;

    use super::*;
    use event_transport::subject::Subject;

    #[test]
    fn one_of_a_key_at_a_time_and_retries_first() {
        let source = super::super::keys::Keys::new(&"t".into(), 0).source("a", "g", false);
        let entry = |seq, key: Option<&str>| {
            let mut message = Message::new(Subject::new("a.b").unwrap(), "", "x");
            message.key = key.map(SmolStr::new);
            let id = EntryId { ms: 1, seq };
            Entry { id, message, origin: id, replayed: false, ill_named: false, extra: Vec::new() }
        };
        let now = Instant::now();
        let mut backlog = Backlog::default();
        for (number, key) in [(1, Some("k")), (2, Some("k")), (3, None)] {
            backlog.add(number, &source, entry(number, key), 0, None);
        }
        assert_eq!((backlog.next(now), backlog.next(now), backlog.next(now)), (Some(1), Some(3), None));
        backlog.again(1, 1, Some(now + std::time::Duration::from_secs(5)));
        assert_eq!(backlog.next(now), None);
        assert_eq!(backlog.next(now + std::time::Duration::from_secs(6)), Some(1));
        backlog.finish(1);
        assert_eq!(backlog.next(now), Some(2));
        backlog.finish(2);
        backlog.finish(3);
        assert!(backlog.is_empty());
    }
}
