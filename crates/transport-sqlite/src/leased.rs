//! A message that a member has leased, and the place of its lease in the file.

use std::sync::Arc;

use super::lease::Lease;
use super::records::Stored;
use event_transport::message::Message;

/// A leased message with the place of its lease.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) held: LeaseSlot,
    pub(super) message: StoredMessage,
}

/// The place of a delivery's lease in the file.
#[derive(Clone, Debug)]
pub(super) enum LeaseSlot {
    /// In a lease of fresh messages.
    Fresh { lease: Arc<Lease>, index: usize },
    /// In a row of `redelivery`.
    Row { id: i64, member: i64 },
}

/// A message with its delivery history in this group.
#[derive(Clone, Debug)]
pub(super) struct StoredMessage {
    pub(super) message: Arc<Message>,
    pub(super) seq: i64,
    /// The attempt number of this delivery.
    pub(super) attempt: u32,
    pub(super) published: i64,
    pub(super) first_at: i64,
    pub(super) replayed: bool,
}

impl StoredMessage {
    /// The first delivery of a message of the log.
    pub(super) fn fresh(stored: Stored, now: i64) -> Self {
        let Stored { message, seq, published } = stored;
        Self { message, seq, attempt: 1, published, first_at: now, replayed: false }
    }
}
