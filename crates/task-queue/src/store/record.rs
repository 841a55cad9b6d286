//! What a store keeps and what it is asked: tasks, leases, attempts, workers, schedules.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for its due time: a countdown, an eta or a retry.
    Scheduled,
    /// Due, waits for a worker.
    Queued,
    /// Leased by a worker.
    Running,
    /// Ended well; the result is kept for its time to live.
    Succeeded,
    /// Failed for good; waits for a replay or a drop.
    Dead,
    /// Cancelled before it ended.
    Cancelled,
    /// Not started in time.
    Expired,
}

impl State {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 7] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }

    /// The stored and shown name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Error::invalid(format!("unknown task state `{text}`")))
    }
}

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
    /// Ends as `expired` if no worker has started it by then.
    pub expires: Option<Timestamp>,
    /// How many failures are retried.
    pub max_retries: u32,
    /// At how many deaths of a worker under it the task counts as a poison pill.
    pub max_crashes: u32,
    /// Held by at most one unfinished task of the same name.
    pub unique: Option<String>,
    /// Correlation, causation, trace context and whatever the caller adds.
    pub headers: BTreeMap<String, String>,
    /// How long the record stays after a good end, a cancellation or expiry.
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

/// A worker's request for work.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The registered worker.
    pub worker: Uuid,
    /// From these queues.
    pub queues: Vec<String>,
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
pub enum Verdict {
    /// Done. `Err` tells why the result could not be kept.
    Succeed(std::result::Result<String, String>),
    /// Run again, not before `due`. `counts` says whether the attempt is counted against the retries.
    Again {
        /// Not before.
        due: Timestamp,
        /// Whether it counts as a failure.
        counts: bool,
    },
    /// Dead: retries are spent, or the error is permanent.
    Bury,
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
    pub verdict: Verdict,
}

/// What a heartbeat learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The lease goes on; these running tasks were asked to stop.
    Held(Held),
    /// The store took the worker for dead: what it held is somebody else's.
    Lost,
}

/// What a live lease carries back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Running tasks of this worker that were cancelled.
    pub cancelled: Vec<Uuid>,
}

/// What housekeeping did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tended {
    /// Tasks of dead workers put back in their queue.
    pub recovered: u64,
    /// Tasks of dead workers that reached their crash cap.
    pub buried: u64,
    /// Tasks that expired unstarted.
    pub expired: u64,
    /// Records deleted because their time to live was over.
    pub pruned: u64,
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
    pub args: serde_json::Value,
    /// Arguments by name.
    pub kwargs: Option<serde_json::Value>,
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
    pub result: Option<serde_json::Value>,
    /// The last error.
    pub error: Option<String>,
    /// All attempts that ended, oldest first.
    pub attempts: Vec<Attempt>,
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

/// A schedule as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    /// Its unique name.
    pub name: String,
    /// When: `cron 0 2 * * *` or `every 30s`, see [`Timing`](crate::Timing).
    pub timing: String,
    /// IANA zone that cron fields are read in.
    pub tz: String,
    /// What happens to times that no scheduler was there for: `once`, `skip` or `all`.
    pub missed: String,
    /// The task kind it enqueues.
    pub task: String,
    /// To this queue.
    pub queue: String,
    /// Positional arguments.
    pub args: serde_json::Value,
    /// Arguments by name.
    pub kwargs: Option<serde_json::Value>,
    /// Priority of the enqueued tasks.
    pub priority: i32,
    /// Retries of the enqueued tasks.
    pub max_retries: u32,
    /// From when it counts; the anchor of an interval.
    pub start: Timestamp,
    /// The next nominal time.
    pub next: Option<Timestamp>,
    /// The last nominal time that fired.
    pub last: Option<Timestamp>,
    /// How often it has fired.
    pub fired: u64,
}

impl ScheduleRecord {
    /// Whether both describe the same work at the same times; counters and times aside.
    pub fn same_plan(&self, other: &Self) -> bool {
        let plain = |record: &Self| Self {
            start: Timestamp::UNIX_EPOCH,
            next: None,
            last: None,
            fired: 0,
            ..record.clone()
        };
        plain(self) == plain(other)
    }
}

/// One step of a schedule, computed by a scheduler from the record it read.
#[derive(Debug, Clone)]
pub struct Firing {
    /// The schedule.
    pub schedule: String,
    /// `next` of the record it was computed from; the step is void if that has changed.
    pub seen: Timestamp,
    /// The plan's timing as read; the step is void if that has changed.
    pub timing: String,
    /// The following nominal time.
    pub next: Option<Timestamp>,
    /// What to enqueue: the nominal time and the task. Empty when missed times are skipped.
    pub tasks: Vec<(Timestamp, NewTask)>,
}
