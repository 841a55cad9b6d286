//! Delayed messages, until they are due. The log reserves room for each of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::message::Message;

#[derive(Debug, Default)]
pub(super) struct Delayed {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    waiting: BTreeMap<u64, DelayedMessage>,
    next: u64,
}

#[derive(Debug)]
pub(super) struct DelayedMessage {
    pub(super) message: Arc<Message>,
    pub(super) published_at: Timestamp,
    pub(super) expires: Option<Instant>,
}

impl Delayed {
    pub(super) fn add(&mut self, message: DelayedMessage, at: Instant) {
        self.next += 1; // equal times keep the order of publication
        self.due.push(Reverse((at, self.next)));
        self.waiting.insert(self.next, message);
    }

    /// Removes and returns the next message that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<DelayedMessage> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, number)) = self.due.pop()?;
        self.waiting.remove(&number)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }
}
