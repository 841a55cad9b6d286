//! Defines claims, leases and settlements of tasks.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A worker's request for work.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The registered worker.
    pub worker: Uuid,
    /// The queues to claim from.
    pub queues: Arc<[String]>,
    /// The kinds to claim: those that the worker has registered.
    pub kinds: Arc<[String]>,
    /// The maximum number of tasks.
    pub limit: usize,
}

/// The result of a claim.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The leased tasks, in the order to run them.
    pub tasks: Vec<Leased>,
    /// The due time of the next scheduled task, in any queue; the worker claims again then.
    pub next_due: Option<Timestamp>,
}

/// A task leased to a worker. Settling it needs the fence of the lease.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The task's id.
    pub id: Uuid,
    /// The number of leases so far; the store refuses a settlement under an older fence.
    pub fence: i64,
    /// The task kind.
    pub name: String,
    /// The queue it came from.
    pub queue: String,
    /// Positional arguments: a JSON array.
    pub args: String,
    /// Arguments by name: a JSON object.
    pub kwargs: Option<String>,
    /// Its priority.
    pub priority: i32,
    /// Failures so far.
    pub errors: u32,
    /// Worker crashes during the task so far.
    pub crashes: u32,
    /// The maximum number of failures that are retried.
    pub max_retries: u32,
    /// The headers given at enqueue.
    pub headers: BTreeMap<String, String>,
    /// The due time.
    pub due: Timestamp,
    /// The start of this lease.
    pub started: Timestamp,
}

/// The outcome of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The function returned `Ok`.
    Succeeded,
    /// The function returned an error, or could not be called.
    Failed,
    /// The time limit passed.
    TimedOut,
    /// The function panicked.
    Panicked,
    /// The worker crashed or lost its lease.
    Crashed,
    /// The function requested to run again later; no attempt is counted.
    Snoozed,
    /// The task was cancelled while it ran.
    Cancelled,
}

/// One attempt in a task's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The fence of the lease.
    pub fence: i64,
    /// The worker's name.
    pub worker: String,
    /// The start of the lease.
    pub started: Timestamp,
    /// The end of the attempt.
    pub ended: Timestamp,
    /// The outcome.
    pub outcome: Outcome,
    /// The error's text, for every outcome but success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The next state of a task after an attempt.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Succeeded, with the result. `Err` holds the reason why the result could not be kept.
    Succeed(std::result::Result<String, String>),
    /// Run again, not before `due`. `counts` determines whether the attempt is counted against the retries.
    Retry {
        /// The earliest time of the next run.
        due: Timestamp,
        /// Whether it counts as a failure.
        counts: bool,
    },
    /// A dead letter: the retries are used up, or the error is permanent.
    DeadLetter,
    /// Cancelled while it ran.
    Cancel,
    /// Released without a run: no attempt is recorded.
    Release,
}

/// The end of one lease.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The task.
    pub id: Uuid,
    /// The worker that holds the lease.
    pub worker: Uuid,
    /// The fence of the lease.
    pub fence: i64,
    /// The attempt; `None` for a release.
    pub attempt: Option<Attempt>,
    /// The next state of the task.
    pub resolution: Resolution,
}

/// The store's answer to a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The store has recorded it.
    Recorded,
    /// The worker no longer held that lease: nothing was changed.
    Fenced,
}
