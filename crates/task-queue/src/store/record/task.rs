//! Tasks: as they are enqueued, as they are kept, and how they are looked for.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Attempt, Json, State};

/// A task to be stored.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// UUIDv7 unless the caller chose another.
    pub id: Uuid,
    /// The registered name of the task kind.
    pub name: String,
    /// The queue that workers pick.
    pub queue: String,
    /// Positional arguments: a JSON array.
    pub args: String,
    /// Arguments by name: a JSON object.
    pub kwargs: Option<String>,
    /// Higher runs sooner; 0 is the default.
    pub priority: i32,
    /// Not before this time; at once when `None`.
    pub due: Option<Timestamp>,
    /// Ends as `expired` if no worker has started it by then. It is about the first start alone: a retry, and a run
    /// after the worker's death, come later than this. (Celery looks at every hand-out, retries included.)
    pub expires: Option<Timestamp>,
    /// How many failures are retried.
    pub max_retries: u32,
    /// At how many deaths of a worker under it the task counts as a poison pill.
    pub max_crashes: u32,
    /// Held by at most one unfinished task of the same name.
    pub unique: Option<String>,
    /// Correlation, causation, trace context and whatever the caller adds.
    pub headers: BTreeMap<String, String>,
    /// How long the record stays after a good end, a cancellation or expiry; a hundred years at most.
    pub result_ttl: Duration,
}

/// What became of an enqueued task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The stored task: the new one, or the one that was there.
    pub id: Uuid,
    /// Whether a task with this id or unique key was there already.
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
    /// Where it is.
    pub state: State,
    /// Positional arguments.
    pub args: Json,
    /// Arguments by name.
    pub kwargs: Option<Json>,
    /// Higher runs sooner.
    pub priority: i32,
    /// When it was enqueued.
    pub created: Timestamp,
    /// When it falls or fell due.
    pub due: Timestamp,
    /// When it expires if not started.
    pub expires: Option<Timestamp>,
    /// Failures so far.
    pub errors: u32,
    /// Deaths of workers under it so far.
    pub crashes: u32,
    /// How many failures are retried.
    pub max_retries: u32,
    /// At how many crashes it is dead.
    pub max_crashes: u32,
    /// Its unique key.
    pub unique: Option<String>,
    /// As given at enqueue.
    pub headers: BTreeMap<String, String>,
    /// The worker that has or had it last.
    pub worker: Option<Uuid>,
    /// Counts hand-outs.
    pub fence: i64,
    /// When the last lease began.
    pub started: Option<Timestamp>,
    /// When it ended for good.
    pub finished: Option<Timestamp>,
    /// Whether a stop was asked for while it ran.
    pub cancel_requested: bool,
    /// What the function returned.
    pub result: Option<Json>,
    /// The last error.
    pub error: Option<String>,
    /// The attempts that ended, oldest first: the newest 50.
    pub attempts: Vec<Attempt>,
    /// How many older attempts are not kept any more.
    #[serde(default)]
    pub attempts_dropped: u64,
}

/// Which tasks to list.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only in this state.
    pub state: Option<State>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only of this kind.
    pub name: Option<String>,
    /// At most so many; 100 by default.
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
    /// Whether hand-outs are stopped.
    pub paused: bool,
    /// Tasks by state; states without tasks are left out.
    pub counts: BTreeMap<State, u64>,
}
