//! The messages that one member holds: ready for a consumer, queued behind others of their key, waiting for a time, or
//! delivered and not settled.
//!
//! ```text
//!  offer ─▶ [lane of its key] ─▶ ready ─▶ out (delivered) ─▶ settled
//!                  ▲                ▲           │ retry of a keyed one
//!                  └─ next of key ──┴── waits ◀─┘
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::attempts::Notes;
use super::codec::{Facts, Incoming};
use event_transport::bounds;
use event_transport::delivery::Token;
use event_transport::key_queue::KeyQueue;
use event_transport::message::Message;

/// A fetched message.
pub(super) struct Item {
    pub(super) tag: u64,
    pub(super) message: Arc<Message>,
    /// Its `attempt` follows from the broker's count.
    pub(super) facts: Facts,
    /// The actual attempt number.
    pub(super) attempt: u32,
}

impl Item {
    /// The difference between the actual attempt number and the broker's count.
    fn offset(&self) -> i64 {
        i64::from(self.attempt) - i64::from(self.facts.attempt)
    }

    /// The facts of a copy that has this attempt number.
    pub(super) fn facts_of(&self, attempt: u32) -> Facts {
        Facts { attempt, due: None, ..self.facts.clone() }
    }

    fn is_expired(&self) -> bool {
        !self.facts.replayed && self.message.expires_at.is_some_and(|at| at <= Timestamp::now())
    }
}

/// An item that is delivered to a consumer and not settled.
struct Out {
    item: Item,
    /// Set when the subscription was dropped.
    lease: Option<Instant>,
}

/// An item that waits for a time.
struct Wait {
    item: Item,
    /// It is the message of its key that is in flight; otherwise it is not lined up yet.
    retry: bool,
}

/// The next message for a consumer.
pub(super) enum Next {
    /// A message that is no longer wanted: it is removed.
    Expired(Item),
    /// The front of the ready messages can be delivered.
    Ready,
    None,
}

/// The numbers of a status report.
pub(super) struct Numbers {
    pub(super) out: usize,
    pub(super) ready: usize,
    /// Behind others of their key, or not due yet.
    pub(super) held: usize,
    pub(super) retrying: usize,
    pub(super) oldest: Option<Timestamp>,
}

/// The messages of one member.
pub(super) struct Ledger {
    keyed: bool,
    tokens: u64,
    out: HashMap<Token, Out>,
    ready: VecDeque<Item>,
    lanes: KeyQueue<Item>,
    /// Keyed retries, and messages that are nearly due, by time.
    waits: BTreeMap<(Instant, u64), Wait>,
    /// Attempts and due times of a keyed group's messages that the broker does not report.
    pub(super) notes: Notes,
}

impl Ledger {
    pub(super) fn new(keyed: bool) -> Self {
        Self {
            keyed,
            tokens: 0,
            out: HashMap::new(),
            ready: VecDeque::new(),
            lanes: KeyQueue::default(),
            waits: BTreeMap::new(),
            notes: Notes::default(),
        }
    }

    /// Makes an item of a decoded delivery.
    pub(super) fn item(&self, tag: u64, read: Incoming) -> Item {
        let message = Arc::new(read.message);
        let mut facts = read.facts;
        let first = facts.attempt;
        facts.attempt = first.saturating_add(read.returns);
        let mut attempt = i64::from(facts.attempt) + self.notes.offset(&message);
        // Behind another message of its key, no handler can have tried it, however often it was fetched.
        if read.returns > 0 && self.keyed && message.key.as_ref().is_some_and(|key| self.lanes.is_busy(key)) {
            attempt = attempt.min(first.into());
        }
        let attempt = u32::try_from(attempt).unwrap_or(1).max(1);
        Item { tag, message, facts, attempt }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    fn key(&self, item: &Item) -> Option<SmolStr> {
        if self.keyed { item.message.key.clone() } else { None }
    }

    /// Makes the item ready, behind the others of its key.
    pub(super) fn line_up(&mut self, item: Item) {
        match self.key(&item) {
            Some(key) => {
                if let Some(free) = self.lanes.offer(&key, item) {
                    self.line_up_next(free);
                }
            }
            None => self.line_up_next(item),
        }
    }

    /// The message is the first of its key: makes it ready, or lets it wait for a retry time that the previous owner
    /// set.
    fn line_up_next(&mut self, item: Item) {
        match self.notes.left(&item.message) {
            Some(left) => self.wait(bounds::from_now(left), item, true),
            None => self.ready.push_back(item),
        }
    }

    fn wait(&mut self, until: Instant, item: Item, retry: bool) {
        let number = self.token();
        self.waits.insert((until, number), Wait { item, retry });
    }

    /// Keeps an item that is nearly due.
    pub(super) fn keep_until_due(&mut self, item: Item, left: Duration) {
        self.wait(bounds::from_now(left), item, false);
    }

    /// Keeps the message of its key that is in flight: it becomes ready after `after`.
    pub(super) fn keep_for(&mut self, item: Item, after: Duration) {
        self.wait(bounds::from_now(after), item, true);
    }

    /// A keyed message waits in this member for its next attempt, and the next ones of its key behind it; it keeps its
    /// place in the broker's queue.
    pub(super) fn retry(&mut self, mut item: Item, after: Duration) {
        item.attempt = item.attempt.saturating_add(1);
        let due = (!after.is_zero()).then(|| bounds::time_from_now(after));
        self.notes.keep_due(&item.message, item.offset() - 1, due);
        self.keep_for(item, after);
    }

    /// Puts a keyed message in front of the next message of its key, which waits for it.
    pub(super) fn put_back(&mut self, item: Item) {
        self.ready.push_front(item);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Looks at the next message for a consumer.
    pub(super) fn next(&mut self) -> Next {
        match self.ready.front() {
            Some(item) if item.is_expired() => Next::Expired(self.ready.pop_front().expect("just seen")),
            Some(_) => Next::Ready,
            None => Next::None,
        }
    }

    /// Delivers the front of the ready messages.
    pub(super) fn deliver(&mut self) -> Option<(Token, &Item)> {
        let mut item = self.ready.pop_front()?;
        item.facts.first_attempt_at.get_or_insert_with(Timestamp::now);
        let token = self.token();
        let out = self.out.entry(token).or_insert(Out { item, lease: None });
        Some((token, &out.item))
    }

    /// Removes a delivered item, because it is settled or its lease ended.
    pub(super) fn take(&mut self, token: Token) -> Option<Item> {
        self.out.remove(&token).map(|out| out.item)
    }

    /// Renews the lease of a delivered item; returns whether this member has it.
    pub(super) fn renew(&mut self, token: Token, lease: Duration) -> bool {
        let Some(out) = self.out.get_mut(&token) else { return false };
        if out.lease.is_some() {
            out.lease = Some(bounds::from_now(lease));
        }
        true
    }

    /// The subscription was dropped: every delivered item has a lease from now on.
    pub(super) fn start_leases(&mut self, lease: Duration) {
        let until = bounds::from_now(lease);
        self.out.values_mut().for_each(|out| out.lease = Some(until));
    }

    /// The message is settled for good: the next one of its key may be delivered.
    pub(super) fn finish(&mut self, item: &Item) {
        if self.keyed {
            self.notes.forget(&item.message);
            if let Some(key) = &item.message.key
                && let Some(next) = self.lanes.finish(key)
            {
                self.line_up_next(next);
            }
        }
    }

    /// When the next lease or wait ends. Leases exist only after `start_leases`.
    pub(super) fn next_time(&self, leased: bool) -> Option<Instant> {
        let lease = if leased { self.out.values().filter_map(|out| out.lease).min() } else { None };
        let wait = self.waits.keys().next().map(|(at, _)| *at);
        [lease, wait].into_iter().flatten().min()
    }

    /// Removes and returns the items whose leases have ended.
    pub(super) fn take_expired_leases(&mut self, now: Instant) -> Vec<Item> {
        let late: Vec<_> = self
            .out
            .iter()
            .filter(|(_, out)| out.lease.is_some_and(|at| at <= now))
            .map(|(token, _)| *token)
            .collect();
        late.into_iter().filter_map(|token| self.take(token)).collect()
    }

    /// Makes the items ready whose waits are over.
    pub(super) fn end_waits(&mut self, now: Instant) {
        while let Some(entry) = self.waits.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let Wait { item, retry } = entry.remove();
            if retry { self.ready.push_back(item) } else { self.line_up(item) }
        }
    }

    /// Removes and returns the ready and the waiting items.
    pub(super) fn take_untaken(&mut self) -> impl Iterator<Item = Item> + use<> {
        let waits = std::mem::take(&mut self.waits).into_values().map(|wait| wait.item);
        std::mem::take(&mut self.ready).into_iter().chain(waits)
    }

    /// Removes and returns all items.
    pub(super) fn take_all(&mut self) -> Vec<Item> {
        let out = std::mem::take(&mut self.out).into_values().map(|out| out.item);
        out.chain(self.take_untaken()).chain(self.lanes.drain()).collect()
    }

    pub(super) fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// The broker will deliver all messages of this member again with its count raised by one, although no handler
    /// tried some of them.
    pub(super) fn note_untaken(&mut self) {
        let waits = self.waits.values().map(|wait| &wait.item);
        let untaken = self.ready.iter().chain(waits).chain(self.lanes.iter());
        for item in untaken {
            self.notes.keep(&item.message, item.offset() - 1);
        }
        for out in self.out.values() {
            self.notes.keep(&out.item.message, out.item.offset());
        }
    }

    pub(super) fn numbers(&self) -> Numbers {
        let retrying = self.waits.values().filter(|wait| wait.retry).count();
        let oldest = (self.out.values().map(|out| &out.item))
            .chain(&self.ready)
            .chain(self.waits.values().map(|wait| &wait.item))
            .chain(self.lanes.iter())
            .filter_map(|item| item.facts.published_at)
            .min();
        Numbers {
            out: self.out.len(),
            ready: self.ready.len(),
            held: self.lanes.waiting() + self.waits.len() - retrying,
            retrying,
            oldest,
        }
    }
}
