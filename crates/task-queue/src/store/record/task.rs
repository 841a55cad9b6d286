//! Defines tasks as they are enqueued, stored and listed.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Attempt, Json, State};

/// A task to be stored.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// The task's id: a UUIDv7 unless the caller chose another.
    pub id: Uuid,
    /// The registered name of the task kind.
    pub name: String,
    /// The queue.
    pub queue: String,
    /// Positional arguments: a JSON array.
    pub args: String,
    /// Arguments by name: a JSON object.
    pub kwargs: Option<String>,
    /// Higher runs sooner; 0 is the default.
    pub priority: i32,
    /// The earliest time of the first run; at once when `None`.
    pub due: Option<Timestamp>,
    /// The time at which the task ends as `expired` if no worker has started it. It applies to the first start
    /// only: a retry, and a run after the worker's crash, may come later. (Celery checks `expires` at every
    /// delivery, retries included.)
    pub expires: Option<Timestamp>,
    /// The maximum number of failures that are retried.
    pub max_retries: u32,
    /// The number of worker crashes during the task at which it becomes dead.
    pub max_crashes: u32,
    /// The unique key, which at most one unfinished task of the same name holds.
    pub unique: Option<String>,
    /// Correlation, causation, trace context and any headers of the caller.
    pub headers: BTreeMap<String, String>,
    /// The time that the record is kept after success, cancellation or expiry; a hundred years at most.
    pub result_ttl: Duration,
}

/// The store's answer for an enqueued task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The id of the stored task: the new one, or the existing one.
    pub id: Uuid,
    /// Whether a task with this id or unique key existed already.
    pub duplicate: bool,
}

/// The whole record of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's id.
    pub id: Uuid,
    /// The task kind.
    pub name: String,
    /// Its queue.
    pub queue: String,
    /// Its state.
    pub state: State,
    /// Positional arguments.
    pub args: Json,
    /// Arguments by name.
    pub kwargs: Option<Json>,
    /// Higher runs sooner.
    pub priority: i32,
    /// The time of the enqueue.
    pub created: Timestamp,
    /// The due time.
    pub due: Timestamp,
    /// The time at which it expires if not started.
    pub expires: Option<Timestamp>,
    /// Failures so far.
    pub errors: u32,
    /// Worker crashes during the task so far.
    pub crashes: u32,
    /// The maximum number of failures that are retried.
    pub max_retries: u32,
    /// The number of worker crashes at which it becomes dead.
    pub max_crashes: u32,
    /// Its unique key.
    pub unique: Option<String>,
    /// The headers given at enqueue.
    pub headers: BTreeMap<String, String>,
    /// The worker that holds or held the last lease.
    pub worker: Option<Uuid>,
    /// The number of leases so far.
    pub fence: i64,
    /// The start of the last lease.
    pub started: Option<Timestamp>,
    /// The time of its final end.
    pub finished: Option<Timestamp>,
    /// Whether it was cancelled while it ran.
    pub cancel_requested: bool,
    /// The result of the function.
    pub result: Option<Json>,
    /// The last error.
    pub error: Option<String>,
    /// The attempts that ended, oldest first: the newest 50.
    pub attempts: Vec<Attempt>,
    /// The number of older attempts that were dropped.
    #[serde(default)]
    pub attempts_dropped: u64,
}

/// The filter of a list of tasks.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only in this state.
    pub state: Option<State>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only of this kind.
    pub name: Option<String>,
    /// The maximum number of tasks; 100 by default.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self { state: None, queue: None, name: None, limit: 100 }
    }
}

/// Counts of one queue.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct QueueStats {
    /// The queue.
    pub queue: String,
    /// Whether claims from the queue are stopped.
    pub paused: bool,
    /// Tasks by state; states without tasks are left out.
    pub counts: BTreeMap<State, u64>,
}
