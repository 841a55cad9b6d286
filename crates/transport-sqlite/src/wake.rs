//! Wakes the tasks of this process: the subscriptions, the housekeeping, and the exchange of requests.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::codec;

/// The interval of the one periodic task, which looks for changes of other processes and for dead members.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// The pause after a failure.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// The signals to the tasks of this process.
#[derive(Debug)]
pub(super) struct Wake {
    /// A counter that is increased when there may be something new to deliver.
    changed: watch::Sender<u64>,
    /// A counter that is increased when every group must look for due redeliveries.
    redeliveries: AtomicU64,
    /// The time at which the next delayed message is due, nanoseconds since 1970.
    next_delayed: AtomicI64,
    /// Wakes the housekeeping task early.
    pub(super) housekeeping: Notify,
    /// Signalled when another process wakes this one, or when there may be more requests or frames to read.
    pub(super) requests: Notify,
}

impl Default for Wake {
    fn default() -> Self {
        Self {
            changed: watch::Sender::new(0),
            redeliveries: AtomicU64::new(0),
            next_delayed: AtomicI64::new(0),
            housekeeping: Notify::new(),
            requests: Notify::new(),
        }
    }
}

impl Wake {
    /// Changes when a subscription must look for something to deliver.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes the subscriptions, because there may be something to deliver.
    pub(super) fn subscriptions(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes the subscriptions and lets every group look for due redeliveries.
    pub(super) fn groups(&self) {
        self.redeliveries.fetch_add(1, Ordering::AcqRel);
        self.subscriptions();
    }

    /// Wakes every task: another process has changed the file.
    pub(super) fn all(&self) {
        self.set_next_delayed(0);
        self.housekeeping.notify_one();
        self.groups();
        self.requests.notify_one();
    }

    /// The number of times that every group was told to look for due redeliveries.
    pub(super) fn redeliveries(&self) -> u64 {
        self.redeliveries.load(Ordering::Acquire)
    }

    /// A delayed message was stored, which is due at `due`.
    pub(super) fn delayed(&self, due: i64) {
        self.next_delayed.fetch_min(due, Ordering::AcqRel);
        self.housekeeping.notify_one();
    }

    /// The next delayed message is due at `due`.
    pub(super) fn set_next_delayed(&self, due: i64) {
        self.next_delayed.store(due, Ordering::Release);
    }

    /// The time until the next delayed message is due.
    pub(super) fn until_delayed(&self) -> Duration {
        let due = self.next_delayed.load(Ordering::Acquire);
        Duration::from_nanos(u64::try_from(due.saturating_sub(codec::now())).unwrap_or(0))
    }
}
