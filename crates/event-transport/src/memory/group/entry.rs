//! An unsettled message of a group and its state: waiting, in flight or delayed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::message::Message;

/// Marks the end of a list of entries.
pub(super) const NONE: u32 = u32::MAX;

/// A message that the group has not settled.
#[derive(Debug)]
pub(in crate::memory) struct Entry {
    pub(in crate::memory) number: u64,
    pub(in crate::memory) message: Arc<Message>,
    pub(in crate::memory) published_at: Timestamp,
    pub(super) expires: Option<Instant>,
    pub(in crate::memory) attempt: u32,
    pub(in crate::memory) first_attempt_at: Option<Timestamp>,
    pub(super) replayed: bool,
    pub(super) state: State,
    /// Changes with every fetch and retry, so that an old token or timer no longer matches.
    pub(super) generation: u32,
    /// The next entry of the same key.
    pub(super) next: u32,
}

#[derive(Debug, PartialEq)]
pub(super) enum State {
    /// In `ready`, or behind the first entry of its key.
    Waiting,
    /// Delivered to `member`. `lease_until` is set only after that member has left the group.
    InFlight { member: u64, lease_until: Option<Instant> },
    /// Waits for its timer.
    Delayed,
}

impl Entry {
    pub(in crate::memory) fn new(
        number: u64,
        message: Arc<Message>,
        published_at: Timestamp,
        expires: Option<Instant>,
    ) -> Self {
        Self {
            number,
            message,
            published_at,
            expires,
            attempt: 0,
            first_attempt_at: None,
            replayed: false,
            state: State::Waiting,
            generation: 0,
            next: NONE,
        }
    }

    /// Returns the same message as if it had never been delivered.
    pub(in crate::memory) fn afresh(self) -> Self {
        let Self { number, message, published_at, expires, replayed, .. } = self;
        Self { replayed, ..Self::new(number, message, published_at, expires) }
    }

    /// Returns the same message, marked as replayed by an operator.
    pub(in crate::memory) fn replay(self) -> Self {
        Self { replayed: true, ..self.afresh() }
    }

    pub(super) fn expired(&self, now: Instant) -> bool {
        !self.replayed && self.expires.is_some_and(|at| at <= now)
    }
}
