//! The topics that this connection knows to exist, and the messages that wait until their topic does.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use smol_str::SmolStr;

use super::pub_ack::Outgoing;

use event_transport::sync::lock;

/// The state of each topic that this connection has used.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<HashMap<SmolStr, TopicState>>);

pub(super) enum TopicState {
    /// The stream exists; the value tells whether it accepts batches.
    Ready(bool),
    /// The stream is being checked or created; these messages wait for it, in order.
    Opening(Vec<Outgoing>),
}

impl fmt::Debug for TopicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Ready(_)) { "ready" } else { "opening" })
    }
}

impl Topics {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<SmolStr, TopicState>> {
        lock(&self.0)
    }

    /// Drops all entries; waiting publishers receive an error that the connection is closed.
    pub(super) fn abandon(&self) {
        self.lock().clear();
    }

    /// Returns whether the topic's stream is known to exist.
    pub(super) fn is_ready(&self, topic: &str) -> bool {
        matches!(self.lock().get(topic), Some(TopicState::Ready(_)))
    }

    pub(super) fn ready(&self, topic: &str, batches: bool) {
        self.lock().entry(topic.into()).or_insert(TopicState::Ready(batches));
    }
}
