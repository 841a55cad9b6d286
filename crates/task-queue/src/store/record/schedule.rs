//! Schedules and their firings.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Json, NewTask};
use crate::task::TaskOptions;

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
    pub args: Json,
    /// Arguments by name.
    pub kwargs: Option<Json>,
    /// Priority of the enqueued tasks.
    pub priority: i32,
    /// Retries of the enqueued tasks.
    pub max_retries: u32,
    /// At how many deaths of a worker under it an enqueued task is dead.
    #[serde(default = "default_crashes")]
    pub max_crashes: u32,
    /// The unique key of the enqueued tasks: a run that is due while an earlier one is unfinished is left out.
    #[serde(default)]
    pub unique: Option<String>,
    /// How long after it is enqueued a task expires that no worker has started.
    #[serde(default, with = "crate::duration::optional")]
    pub expires: Option<Duration>,
    /// How long the enqueued tasks' records are kept after their end.
    #[serde(default = "default_result_ttl", with = "crate::duration::text")]
    pub result_ttl: Duration,
    /// Headers of the enqueued tasks, beside `schedule` and `nominal`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
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

fn default_crashes() -> u32 {
    TaskOptions::DEFAULT.crashes
}

fn default_result_ttl() -> Duration {
    TaskOptions::DEFAULT.result_ttl
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
    /// The clock was set back: nominal times that fired later than this are forgotten and may fire again.
    pub set_back: Option<Timestamp>,
}
