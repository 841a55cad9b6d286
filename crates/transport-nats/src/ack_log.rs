//! The numbers of the acknowledgements that were sent to one consumer, and how many of them the server has confirmed.

use std::sync::Mutex as SyncMutex;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use event_transport::sync::lock;

/// The acknowledgements sent to one consumer.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    sent: AtomicU64,
    /// The incarnation of the connection, and how many acknowledgements the server has confirmed in it.
    confirmed: SyncMutex<(u64, u64)>,
    /// Held while one caller asks for a confirmation; the others wait for its result.
    pub(super) turn: Mutex<()>,
}

/// The number of an acknowledgement that was sent without a reply subject.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckSeq {
    /// Of the connection: an acknowledgement may be lost with the connection that carried it.
    incarnation: u64,
    number: u64,
}

impl AckLog {
    /// Numbers an acknowledgement that was sent over this incarnation of the connection.
    pub(super) fn number(&self, incarnation: u64) -> AckSeq {
        AckSeq { incarnation, number: self.sent.fetch_add(1, Ordering::AcqRel) }
    }

    /// Returns how many acknowledgements were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Records that the server has processed the first `sent` acknowledgements.
    pub(super) fn confirm(&self, incarnation: u64, sent: u64) {
        let mut confirmed = self.confirmed();
        *confirmed = (*confirmed).max((incarnation, sent));
    }

    pub(super) fn is_confirmed(&self, seq: AckSeq) -> bool {
        let (incarnation, sent) = *self.confirmed();
        incarnation == seq.incarnation && seq.number < sent
    }

    fn confirmed(&self) -> MutexGuard<'_, (u64, u64)> {
        lock(&self.confirmed)
    }
}
