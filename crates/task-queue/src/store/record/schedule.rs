//! Schedules and their firings.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::NewTask;

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
