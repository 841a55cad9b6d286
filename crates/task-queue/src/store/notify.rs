//! Wake-ups: "look again", said per topic. A hint may come too often and is never the only way to learn.

use tokio::sync::watch;

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// There may be tasks to claim.
    Work,
    /// Tasks have ended.
    Ended,
    /// Running tasks were asked to stop.
    Stops,
    /// Schedules were added, changed or removed.
    Schedules,
}

impl Channel {
    /// Every topic, in the order of their slots.
    pub const ALL: [Self; 4] = [Self::Work, Self::Ended, Self::Stops, Self::Schedules];
}

/// One coalescing signal per topic: many notices before a look are one look.
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
    /// Tells everyone who watches the topic to look again.
    pub fn notify(&self, topic: Channel) {
        self.topics[topic as usize].send_replace(());
    }

    /// A watcher; `changed()` completes once for all notices since the last time.
    pub fn watch(&self, topic: Channel) -> watch::Receiver<()> {
        self.topics[topic as usize].subscribe()
    }
}
