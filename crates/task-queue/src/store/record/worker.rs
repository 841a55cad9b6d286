//! Defines workers, the answers to their heartbeats and the results of housekeeping.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The store's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The lease is extended; the status lists the running tasks that were cancelled.
    LeaseStatus(LeaseStatus),
    /// The lease has expired: other workers may claim its tasks.
    Lost,
}

/// The status of a live lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Running tasks of this worker that were cancelled.
    pub cancelled: Vec<Uuid>,
}

/// The result of one round of housekeeping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// Tasks of dead workers that were put back in their queue or cancelled.
    pub recovered: u64,
    /// Tasks of dead workers that reached their crash cap.
    pub dead_lettered: u64,
    /// Tasks that became dead because no worker has registered their kind for too long.
    pub unknown: u64,
    /// Tasks that expired before a worker started them.
    pub expired: u64,
    /// Records deleted because their time to live was over.
    pub pruned: u64,
    /// The number of tasks that became dead in this round, by kind and queue: the sum of `dead_lettered` and
    /// `unknown`.
    pub dead: BTreeMap<(String, String), u64>,
}

/// A worker as it registers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// The worker's id, new for each registration.
    pub id: Uuid,
    /// The name shown to people: `worker@host:pid`.
    pub name: String,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// Task kinds it can run.
    pub tasks: Vec<String>,
    /// Tasks it runs at once.
    pub concurrency: usize,
}

/// A registered worker with its lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// The data that it registered with.
    #[serde(flatten)]
    pub info: WorkerInfo,
    /// The time of its registration.
    pub started: Timestamp,
    /// The time of its last heartbeat.
    pub heartbeat: Timestamp,
    /// The time at which its lease expires unless it is renewed.
    pub lease_until: Timestamp,
    /// Tasks it holds now.
    pub running: u64,
}
