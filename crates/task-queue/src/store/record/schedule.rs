//! Defines the records of schedules and their firings.

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
    /// The timing: `cron 0 2 * * *` or `every 30s`, see [`Timing`](crate::Timing).
    pub timing: String,
    /// The IANA time zone of the cron fields.
    pub tz: String,
    /// The policy for times at which no scheduler was running: `once`, `skip` or `all`.
    pub missed: String,
    /// The task kind it enqueues.
    pub task: String,
    /// The queue of the enqueued tasks.
    pub queue: String,
    /// Positional arguments.
    pub args: Json,
    /// Arguments by name.
    pub kwargs: Option<Json>,
    /// Priority of the enqueued tasks.
    pub priority: i32,
    /// Retries of the enqueued tasks.
    pub max_retries: u32,
    /// The number of worker crashes during an enqueued task at which it becomes dead.
    #[serde(default = "default_crashes")]
    pub max_crashes: u32,
    /// The unique key of the enqueued tasks: a run is skipped when it falls due while an earlier one is unfinished.
    #[serde(default)]
    pub unique: Option<String>,
    /// The time after enqueue at which a task expires if no worker has started it.
    #[serde(default, with = "settings::duration::optional")]
    pub expires: Option<Duration>,
    /// The time that the records of the enqueued tasks are kept after their end.
    #[serde(default = "default_result_ttl", with = "settings::duration::text")]
    pub result_ttl: Duration,
    /// Headers of the enqueued tasks, in addition to `schedule` and `nominal`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The time from which the schedule applies; the anchor of an interval.
    pub start: Timestamp,
    /// The next nominal time.
    pub next: Option<Timestamp>,
    /// The last nominal time that fired.
    pub last: Option<Timestamp>,
    /// The number of tasks that it has enqueued.
    pub fired: u64,
}

impl ScheduleRecord {
    /// Whether both records describe the same work at the same times, ignoring counters and times.
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

/// One step of a schedule, which a scheduler computes from the record that it read.
#[derive(Debug, Clone)]
pub struct Firing {
    /// The schedule.
    pub schedule: String,
    /// `next` of the record that the step was computed from; the step is void if `next` has changed.
    pub seen: Timestamp,
    /// The timing as read; the step is void if it has changed.
    pub timing: String,
    /// The following nominal time.
    pub next: Option<Timestamp>,
    /// The tasks to enqueue, each with its nominal time. Empty when missed times are skipped.
    pub tasks: Vec<(Timestamp, NewTask)>,
    /// Set when the clock was set back: the store forgets nominal times that fired later than this, and they may
    /// fire again.
    pub set_back: Option<Timestamp>,
}
