//! The messages that a leader holds: in key order, ready or waiting for a retry, with the progress in each topic.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::checkpoint::{Attempted, Mark};
use event_transport::bounds;
use event_transport::delivery::{DeliveryInfo, Token};
use event_transport::key_queue::KeyQueue;
use event_transport::message::Message;
use event_transport::telemetry::count_expired;

/// Largest number of messages behind busy keys, and of messages that wait for a retry. No more are read at this
/// number.
const WINDOW: usize = 1024;
/// Largest number of bytes of all held messages.
const BYTES: usize = 64 * 1024 * 1024;
/// Largest number of ready messages that are read ahead.
const AHEAD: usize = 256;

/// All unsettled messages that were read.
#[derive(Default)]
pub(super) struct Backlog {
    entries: HashMap<Token, QueuedMessage>,
    last: Token,
    bytes: usize,
    lanes: KeyQueue<Token>,
    /// Messages to deliver as soon as a slot is free.
    ready: VecDeque<Token>,
    /// Messages that wait for their time.
    waiting: BinaryHeap<Reverse<(Instant, Token)>>,
    /// The progress in each topic. A message stays in here until it is finally settled.
    pub(super) marks: BTreeMap<SmolStr, Mark>,
}

/// An unsettled message that was read.
pub(super) struct QueuedMessage {
    pub(super) topic: SmolStr,
    pub(super) sequence: u64,
    pub(super) message: Arc<Message>,
    pub(super) info: DeliveryInfo,
    /// Delivered to the consumer, or in its queue.
    pub(super) out: bool,
}

impl QueuedMessage {
    /// Returns whether the message has expired. A replayed message does not expire.
    fn is_expired(&self) -> bool {
        !self.info.replayed && self.message.expires_at.is_some_and(|at| at <= Timestamp::now())
    }
}

impl Backlog {
    /// Adds the next message of a topic, in the order of the stream.
    pub(super) fn accept(&mut self, topic: &SmolStr, sequence: u64, message: Message, info: DeliveryInfo) {
        let mark = self.marks.entry(topic.clone()).or_default();
        mark.next = mark.next.max(sequence + 1);
        mark.open.entry(sequence).or_default();
        self.last += 1;
        let token = self.last;
        self.bytes += message.size();
        let key = message.key.clone();
        let entry =
            QueuedMessage { topic: topic.clone(), sequence, message: Arc::new(message), info, out: false };
        self.entries.insert(token, entry);
        let head = match &key {
            Some(key) => self.lanes.offer(key, token),
            None => Some(token),
        };
        if let Some(token) = head {
            self.make_ready(token);
        }
    }

    /// Drops the message at `sequence`: the group does not want it, or the stream no longer has it.
    pub(super) fn discard(&mut self, topic: &SmolStr, sequence: u64) {
        let mark = self.marks.entry(topic.clone()).or_default();
        mark.next = mark.next.max(sequence + 1);
        mark.open.remove(&sequence);
    }

    /// Moves past the message at `sequence`, which was read before and is still open.
    pub(super) fn skip(&mut self, topic: &SmolStr, sequence: u64) {
        let mark = self.marks.entry(topic.clone()).or_default();
        mark.next = mark.next.max(sequence + 1);
    }

    /// Returns whether the message at `sequence` was read and is not settled.
    pub(super) fn is_open(&self, topic: &SmolStr, sequence: u64) -> bool {
        self.marks.get(topic).is_some_and(|mark| mark.open.contains_key(&sequence))
    }

    fn make_ready(&mut self, token: Token) {
        let due = self.tried(token).map_or(0, |tried| tried.due);
        let left = due.saturating_sub(Timestamp::now().as_millisecond());
        match u64::try_from(left) {
            Ok(left) if left > 0 => {
                self.waiting.push(Reverse((bounds::from_now(Duration::from_millis(left)), token)));
            }
            _ => self.ready.push_back(token),
        }
    }

    fn tried(&mut self, token: Token) -> Option<&mut Attempted> {
        let entry = self.entries.get(&token)?;
        self.marks.get_mut(&entry.topic)?.open.get_mut(&entry.sequence)
    }

    /// Returns the number of messages that may still be read.
    pub(super) fn room(&self) -> usize {
        if self.lanes.waiting() >= WINDOW || self.waiting.len() >= WINDOW || self.bytes >= BYTES {
            return 0;
        }
        AHEAD.saturating_sub(self.ready.len())
    }

    /// Returns whether a message is ready.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the next ready message and counts its attempt. Expired messages are settled on the way.
    pub(super) fn claim(&mut self) -> Option<Token> {
        loop {
            let token = self.ready.pop_front()?;
            let Some(entry) = self.entries.get(&token) else { continue };
            if entry.is_expired() {
                count_expired("nats", 1);
                self.settle(token);
                continue;
            }
            let tried = self.tried(token)?;
            tried.attempts = tried.attempts.saturating_add(1);
            tried.due = 0;
            if tried.first == 0 && tried.attempts > 1 {
                tried.first = Timestamp::now().as_millisecond();
            }
            let attempt = tried.attempts;
            self.entries.get_mut(&token)?.info.attempt = attempt;
            return Some(token);
        }
    }

    /// Marks a claimed message as delivered and returns it.
    pub(super) fn hand_out(&mut self, token: Token) -> Option<(Arc<Message>, DeliveryInfo)> {
        let entry = self.entries.get_mut(&token)?;
        entry.out = true;
        Some((entry.message.clone(), entry.info.clone()))
    }

    /// Returns the delivered message with this token.
    pub(super) fn out(&mut self, token: Token) -> Option<&mut QueuedMessage> {
        self.entries.get_mut(&token).filter(|entry| entry.out)
    }

    /// Returns the tokens of all delivered messages.
    pub(super) fn all_out(&self) -> Vec<Token> {
        self.entries.iter().filter(|(_, entry)| entry.out).map(|(token, _)| *token).collect()
    }

    /// Returns the time of the first attempt in Unix milliseconds.
    pub(super) fn first_attempt(&mut self, token: Token) -> i64 {
        self.tried(token)
            .map(|tried| tried.first)
            .filter(|first| *first > 0)
            .unwrap_or_else(|| Timestamp::now().as_millisecond())
    }

    /// Settles a message finally; the next message of its key becomes ready.
    pub(super) fn settle(&mut self, token: Token) {
        let Some(entry) = self.remove(token) else { return };
        if let Some(mark) = self.marks.get_mut(&entry.topic) {
            mark.open.remove(&entry.sequence);
        }
        if let Some(next) = entry.message.key.as_ref().and_then(|key| self.lanes.finish(key)) {
            self.make_ready(next);
        }
    }

    /// Schedules a failed message again after `after`; its key waits for it.
    pub(super) fn retry(&mut self, token: Token, after: Duration) {
        let now = Timestamp::now().as_millisecond();
        let after = bounds::signed_millis(after);
        if let Some(tried) = self.tried(token) {
            tried.due = if after == 0 { 0 } else { now.saturating_add(after) };
            if tried.first == 0 {
                tried.first = now;
            }
        }
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.out = false;
            self.make_ready(token);
        }
    }

    /// Puts back a message that was not processed: its attempt does not count, and it is delivered first.
    pub(super) fn release(&mut self, token: Token) {
        if let Some(tried) = self.tried(token) {
            tried.attempts = tried.attempts.saturating_sub(1);
        }
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.out = false;
            self.ready.push_front(token);
        }
    }

    /// Delays a message that was not processed by `after`: its attempt does not count, and its key waits for it.
    pub(super) fn defer(&mut self, token: Token, after: Duration) {
        if let Some(tried) = self.tried(token) {
            tried.attempts = tried.attempts.saturating_sub(1);
        }
        self.retry(token, after);
    }

    /// Drops all messages that were not delivered; the next leader reads them again.
    pub(super) fn let_go(&mut self) {
        self.entries.retain(|_, entry| entry.out);
        self.lanes = KeyQueue::default();
        self.ready.clear();
        self.waiting.clear();
    }

    /// Makes due messages ready. Returns the time at which the next one is due.
    pub(super) fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, token))) = self.waiting.peek().copied() {
            if at > now {
                return Some(at);
            }
            self.waiting.pop();
            self.ready.push_back(token);
        }
        None
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    fn remove(&mut self, token: Token) -> Option<QueuedMessage> {
        let entry = self.entries.remove(&token)?;
        self.bytes = self.bytes.saturating_sub(entry.message.size());
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_transport::subject::Subject;

    fn message(key: &str) -> Message {
        let mut message = Message::new(Subject::new("a.b").unwrap(), "text/plain", "x");
        message.key = Some(key.into());
        message
    }

    fn next(backlog: &mut Backlog) -> Option<(Token, u64, u32)> {
        let token = backlog.claim()?;
        let (_, info) = backlog.hand_out(token)?;
        Some((token, backlog.out(token)?.sequence, info.attempt))
    }

    #[tokio::test(start_paused = true)]
    async fn keys_keep_their_order_and_attempts_count() {
        let mut backlog = Backlog::default();
        let topic = SmolStr::new("a");
        for (sequence, key) in [(1, "k"), (2, "k"), (3, "other"), (5, "k")] {
            backlog.accept(&topic, sequence, message(key), DeliveryInfo::default());
        }
        let (first, other) = (next(&mut backlog).unwrap(), next(&mut backlog).unwrap());
        assert_eq!((first.1, first.2, other.1), (1, 1, 3));
        assert_eq!(next(&mut backlog), None, "the key is busy");

        backlog.release(first.0);
        let first = next(&mut backlog).unwrap();
        assert_eq!((first.1, first.2), (1, 1), "a release does not count");
        backlog.retry(first.0, Duration::from_secs(3600));
        backlog.settle(other.0);
        assert_eq!(next(&mut backlog), None, "its key waits for it");
        let mark = &backlog.marks["a"];
        assert_eq!((mark.next, mark.floor()), (6, 1));
        assert_eq!(mark.open.keys().copied().collect::<Vec<_>>(), [1, 2, 5]);
        assert!(mark.open[&1].due > 0 && mark.open[&1].attempts == 1);

        let due = backlog.wake(Instant::now()).unwrap();
        assert!(backlog.wake(due).is_none());
        let again = next(&mut backlog).unwrap();
        assert_eq!((again.1, again.2), (1, 2));
        backlog.settle(again.0);
        assert_eq!(next(&mut backlog).map(|(_, sequence, attempt)| (sequence, attempt)), Some((2, 1)));
    }

    #[test]
    fn what_was_begun_is_open_when_it_is_let_go() {
        let mut backlog = Backlog::default();
        let topic = SmolStr::new("a");
        backlog.accept(&topic, 1, message("k"), DeliveryInfo::default());
        let (token, ..) = next(&mut backlog).unwrap();
        backlog.accept(&topic, 2, message("k"), DeliveryInfo::default());
        backlog.let_go();
        assert_eq!(backlog.all_out(), [token]);
        backlog.settle(token);
        assert_eq!(backlog.marks["a"].open.keys().copied().collect::<Vec<_>>(), [2]);
        assert!(!backlog.has_ready());
    }
}
