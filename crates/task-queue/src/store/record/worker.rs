//! Workers: how they announce themselves and what their heartbeats learn.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a heartbeat learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The lease goes on; these running tasks were asked to stop.
    LeaseStatus(LeaseStatus),
    /// The store took the worker for dead: what it held is somebody else's.
    Lost,
}

/// What a live lease carries back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Running tasks of this worker that were cancelled.
    pub cancelled: Vec<Uuid>,
}

/// What housekeeping did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// Tasks of dead workers put back in their queue.
    pub recovered: u64,
    /// Tasks of dead workers that reached their crash cap.
    pub dead_lettered: u64,
    /// Tasks that are dead because no worker has registered their kind for too long.
    pub unknown: u64,
    /// Tasks that expired unstarted.
    pub expired: u64,
    /// Records deleted because their time to live was over.
    pub pruned: u64,
    /// How many are dead now, by kind and queue: the buried and the unknown ones.
    pub dead: BTreeMap<(String, String), u64>,
}

/// A worker as it announces itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Fresh for each process start.
    pub id: Uuid,
    /// For people: `worker@host:pid`.
    pub name: String,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// Task kinds it can run.
    pub tasks: Vec<String>,
    /// Tasks it runs at once.
    pub concurrency: usize,
}

/// A worker as the store knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// What it announced.
    #[serde(flatten)]
    pub info: WorkerInfo,
    /// When it started.
    pub started: Timestamp,
    /// Its last heartbeat.
    pub heartbeat: Timestamp,
    /// When its lease ends unless it is renewed.
    pub lease_until: Timestamp,
    /// Tasks it holds now.
    pub running: u64,
}
