//! Queries and commands to all connections of a namespace, the answers to them, and the table of open queries.

use std::collections::HashMap;
use std::sync::Mutex;

use lapin::message::Delivery;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use event_transport::sync::lock;

/// A query or command to every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ask {
    /// Report the messages that you hold.
    Status,
    /// Discard the messages of this group, because the group was moved.
    GiveUp(String),
    /// End the members of this group, because the group is deleted.
    End(String),
    /// A connection publishes with delay.
    Delays,
}

/// The messages that one subscription holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Holding {
    pub(super) group: String,
    /// The subscription receives new messages.
    pub(super) live: bool,
    /// Delivered to consumers, or settled and not yet acknowledged to the broker.
    pub(super) in_flight: u64,
    /// Fetched, but waiting behind other messages of their key.
    pub(super) held: u64,
    /// Waiting in this member for a retry.
    pub(super) retrying: u64,
    /// Publication time of the oldest message, in Unix milliseconds.
    pub(super) oldest: Option<i64>,
    /// Number of messages that it ever received: distinguishes two status reports.
    pub(super) seen: u64,
}

/// A query as it is sent.
#[derive(Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) ask: Ask,
    /// The inbox for the answer.
    pub(super) to: String,
    pub(super) number: u64,
}

/// Open queries of one connection, and the queue of queries that it must answer.
#[derive(Debug)]
pub(super) struct Queries {
    open: Mutex<HashMap<u64, mpsc::UnboundedSender<Vec<Holding>>>>,
    asked: mpsc::UnboundedSender<Question>,
}

impl Queries {
    /// Queries of other connections go to `asked`.
    pub(super) fn new(asked: mpsc::UnboundedSender<Question>) -> Self {
        Self { open: Mutex::default(), asked }
    }

    /// Opens a query; its answers arrive in the returned queue.
    pub(super) fn open(&self, number: u64) -> mpsc::UnboundedReceiver<Vec<Holding>> {
        let (sender, answers) = mpsc::unbounded_channel();
        lock(&self.open).insert(number, sender);
        answers
    }

    pub(super) fn end(&self, number: u64) {
        lock(&self.open).remove(&number);
    }

    pub(super) fn asked(&self, delivery: &Delivery) {
        if let Ok(question) = serde_json::from_slice(&delivery.data) {
            let _ = self.asked.send(question);
        }
    }

    pub(super) fn answered(&self, number: u64, delivery: &Delivery) {
        if let Ok(holdings) = serde_json::from_slice(&delivery.data)
            && let Some(sender) = lock(&self.open).get(&number)
        {
            let _ = sender.send(holdings);
        }
    }
}
