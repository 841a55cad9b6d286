//! The broadcast subscriptions of a bus; each reads the log at its own pace.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::subject::{Pattern, Subject};

#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Listener>);

#[derive(Debug)]
pub(super) struct Listener {
    id: u64,
    filters: Vec<Pattern>,
    wake: Arc<Notify>,
    /// Number of the next record to read.
    pub(super) next: u64,
    /// It has read all matching records and waits for a wake-up.
    pub(super) idle: bool,
}

impl Listener {
    pub(super) fn matches(&self, subject: &Subject) -> bool {
        self.filters.iter().any(|filter| filter.matches(subject))
    }
}

impl Listeners {
    /// Adds a listener whose first record is number `next`.
    pub(super) fn join(&mut self, id: u64, filters: Vec<Pattern>, next: u64) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.0.push(Listener { id, filters, wake: wake.clone(), next, idle: false });
        wake
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.0.retain(|listener| listener.id != id);
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Listener> {
        self.0.iter_mut().find(|listener| listener.id == id)
    }

    pub(super) fn matching(&self, subject: &Subject) -> Vec<u64> {
        self.0.iter().filter(|listener| listener.matches(subject)).map(|listener| listener.id).collect()
    }

    /// Wakes an idle listener for the new record `number`, which matches.
    pub(super) fn wake(&mut self, id: u64, number: u64) {
        if let Some(listener) = self.get(id).filter(|listener| listener.idle) {
            // The records in between did not match, so they do not count as missed.
            listener.next = number;
            listener.idle = false;
            listener.wake.notify_one();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.iter().for_each(|listener| listener.wake.notify_one());
    }
}
