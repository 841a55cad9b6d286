//! Leases: how tasks are handed out, and how each hand-out ends.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A worker's request for work.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The registered worker.
    pub worker: Uuid,
    /// From these queues.
    pub queues: Arc<[String]>,
    /// Only tasks of these kinds: those that the worker has registered.
    pub kinds: Arc<[String]>,
    /// At most so many.
    pub limit: usize,
}

/// What a claim got.
#[derive(Debug, Default)]
pub struct Claimed {
    /// In the order to run them.
    pub tasks: Vec<Leased>,
    /// When the next waiting task falls due, in any queue: look again then.
    pub next_due: Option<Timestamp>,
}

/// A task in a worker's hands. Settling it needs the fence it was handed out under.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The task's id.
    pub id: Uuid,
    /// Counts hand-outs; a settle under an older fence is refused.
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
    /// Deaths of workers under it so far.
    pub crashes: u32,
    /// How many failures are retried.
    pub max_retries: u32,
    /// As given at enqueue.
    pub headers: BTreeMap<String, String>,
    /// When it fell due.
    pub due: Timestamp,
    /// When this lease began.
    pub started: Timestamp,
}

/// How one attempt ended.
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
    /// The worker died or lost its lease.
    Crashed,
    /// The function asked to run again later; costs no attempt.
    Snoozed,
    /// A stop was asked for.
    Cancelled,
}

/// One attempt in a task's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The hand-out's number.
    pub fence: i64,
    /// The worker's name.
    pub worker: String,
    /// When it was handed out.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// The error's text, for all but a good end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What becomes of the task after an attempt.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Done. `Err` tells why the result could not be kept.
    Succeed(std::result::Result<String, String>),
    /// Run again, not before `due`. `counts` says whether the attempt is counted against the retries.
    Retry {
        /// Not before.
        due: Timestamp,
        /// Whether it counts as a failure.
        counts: bool,
    },
    /// Dead: retries are spent, or the error is permanent.
    DeadLetter,
    /// Cancelled while it ran.
    Cancel,
    /// Handed back unrun: no attempt is recorded.
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
    /// What happened; `None` for a release.
    pub attempt: Option<Attempt>,
    /// What follows.
    pub resolution: Resolution,
}

/// What became of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The store has it.
    Recorded,
    /// The worker no longer had that lease: nothing was changed.
    Fenced,
}
