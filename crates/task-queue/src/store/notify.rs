//! Notifies local waiters per topic that the store may have changed. A notification may be redundant or missing, so
//! waiters also poll.

use tokio::sync::watch;

/// The topics of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// There may be tasks to claim.
    Work,
    /// Tasks have ended.
    Ended,
    /// Running tasks were cancelled.
    Stops,
    /// Schedules were added, changed or removed.
    Schedules,
}

impl Channel {
    /// Every topic, in the order of its slot.
    pub const ALL: [Self; 4] = [Self::Work, Self::Ended, Self::Stops, Self::Schedules];
}

/// One signal per topic. Signals coalesce: several notifications before a read cause one read.
#[derive(Debug)]
pub struct Notifier {
    topics: [watch::Sender<()>; Channel::ALL.len()],
}

impl Default for Notifier {
    fn default() -> Self {
        Self { topics: std::array::from_fn(|_| watch::Sender::new(())) }
    }
}

impl Notifier {
    /// Notifies all watchers of the topic.
    pub fn notify(&self, topic: Channel) {
        self.topics[topic as usize].send_replace(());
    }

    /// Returns a watcher; `changed()` completes once for all notifications since the last time.
    pub fn watch(&self, topic: Channel) -> watch::Receiver<()> {
        self.topics[topic as usize].subscribe()
    }
}
