//! The counts of one handler.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one handler since it started.
#[derive(Debug, Default)]
pub struct Stats {
    pub(super) acked: AtomicU64,
    pub(super) retried: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) released: AtomicU64,
    pub(super) panicked: AtomicU64,
    pub(super) unsettled: AtomicU64,
}

/// A snapshot of a handler's [`Stats`]. For a handler of requests, acked means answered, rejected means answered with
/// an error, and released means dropped because the caller no longer waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// The message was handled.
    pub acked: u64,
    /// The attempt failed and is retried.
    pub retried: u64,
    /// The message failed for good.
    pub rejected: u64,
    /// The message was released without an attempt.
    pub released: u64,
    /// Attempts that ended in a panic; also counted as retried or rejected.
    pub panicked: u64,
    /// Settlements that the transport did not confirm: the message is delivered again, unless another consumer has it.
    pub unsettled: u64,
}

impl Stats {
    /// Reads the counts.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            acked: read(&self.acked),
            retried: read(&self.retried),
            rejected: read(&self.rejected),
            released: read(&self.released),
            panicked: read(&self.panicked),
            unsettled: read(&self.unsettled),
        }
    }
}
