//! Builds schedules in code.

use std::time::Duration;

use jiff::Timestamp;

use super::{Missed, Timing, timing};
use crate::{
    Error, Result,
    bounds::LONGEST,
    client::Call,
    store::{Json, NewTask, ScheduleRecord},
    task::{Task, TaskOptions, by_name},
};

/// A named schedule: its timing, its time zone, and the task to enqueue.
#[derive(Debug, Clone)]
#[must_use = "a schedule fires only when a scheduler runs it"]
pub struct Schedule {
    record: ScheduleRecord,
    timing: Timing,
}

impl Schedule {
    /// Creates a schedule from a cron expression in UTC; see [`Timing`].
    ///
    /// # Errors
    /// When the expression is wrong; the error names the wrong field.
    pub fn cron(name: impl Into<String>, expression: &str) -> Result<Self> {
        Ok(Self::new(name, Timing::cron(expression)?))
    }

    /// Creates a schedule that fires at this interval from now on.
    ///
    /// # Errors
    /// When the interval is shorter than 100 ms or longer than a hundred years.
    pub fn every(name: impl Into<String>, interval: Duration) -> Result<Self> {
        Ok(Self::new(name, Timing::every(interval)?))
    }

    /// Creates a schedule with any timing.
    pub fn new(name: impl Into<String>, timing: Timing) -> Self {
        let start = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).expect("now is a time");
        let record = ScheduleRecord {
            name: name.into(),
            timing: timing.to_string(),
            tz: "UTC".to_owned(),
            missed: Missed::default().to_string(),
            task: String::new(),
            queue: String::new(),
            args: Json::parse("[]").expect("this is json"),
            kwargs: None,
            priority: 0,
            max_retries: 0,
            max_crashes: TaskOptions::DEFAULT.crashes,
            unique: None,
            expires: None,
            result_ttl: TaskOptions::DEFAULT.result_ttl,
            headers: Default::default(),
            start,
            next: None,
            last: None,
            fired: 0,
        };
        Self { record, timing }
    }

    /// Sets the IANA time zone of the cron fields; UTC by default.
    ///
    /// # Errors
    /// When the time zone does not exist.
    pub fn zone(mut self, name: &str) -> Result<Self> {
        timing::zone(name)?;
        self.record.tz = name.to_owned();
        Ok(self)
    }

    /// Sets the policy for times at which no scheduler was running; [`Missed::Once`] by default.
    pub fn missed(mut self, missed: Missed) -> Self {
        self.record.missed = missed.to_string();
        self
    }

    /// Lets each run expire if no worker has started it within this time after it was enqueued.
    pub fn expires(mut self, within: Duration) -> Self {
        self.record.expires = Some(within.min(LONGEST));
        self
    }

    /// Sets the call to enqueue, with all its options; each run gets a new id. With a unique key, a run is skipped
    /// when it falls due while an earlier one is unfinished.
    ///
    /// # Errors
    /// When the arguments cannot be written as JSON, or when the call has its own time (`countdown`, `eta`,
    /// `expires_at`), because the schedule sets the time.
    pub fn call<T: Task>(self, call: Call<T>) -> Result<Self> {
        let (task, expires) = call.into_plan()?;
        let mut schedule = self.task(task)?;
        if let Some(within) = expires {
            schedule = schedule.expires(within);
        }
        Ok(schedule)
    }

    /// Sets the task to enqueue, by name; each run is a copy of it.
    ///
    /// # Errors
    /// When the arguments are not a JSON array, the arguments by name are not a JSON object, or the task has its own
    /// time.
    pub fn task(mut self, task: NewTask) -> Result<Self> {
        let name = &self.record.name;
        if task.name.is_empty() {
            return Err(no_call(name));
        }
        if task.due.is_some() {
            return Err(Error::invalid(format!(
                "the task of schedule `{name}` has a due time: remove it, the schedule sets the time"
            )));
        }
        if task.expires.is_some() {
            let text = format!(
                "the task of schedule `{name}` expires at one time for all runs: use `.expires(within)`"
            );
            return Err(Error::invalid(text));
        }
        let args = Json::parse(&task.args)?;
        if !args.as_str().starts_with('[') {
            return Err(Error::invalid(format!("the arguments are not a JSON array: {args}")));
        }
        if let Some(kwargs) = &task.kwargs {
            by_name(kwargs)?;
        }
        self.record.kwargs = task.kwargs.as_deref().map(Json::parse).transpose()?;
        self.record.task = task.name;
        self.record.queue = task.queue;
        self.record.args = args;
        self.record.priority = task.priority;
        self.record.max_retries = task.max_retries;
        self.record.max_crashes = task.max_crashes;
        self.record.unique = task.unique;
        self.record.result_ttl = task.result_ttl.min(LONGEST);
        self.record.headers = task.headers;
        Ok(self)
    }

    /// Returns the record with its first nominal time.
    pub fn into_record(self) -> ScheduleRecord {
        let mut record = self.record;
        let tz = timing::zone(&record.tz).expect("checked when it was set");
        // The first firing of an interval is one interval from now, as in Celery; the start is only the anchor of
        // its grid.
        record.next = self.timing.next(record.start, &tz, record.start);
        record
    }
}

/// The error for a schedule without a task to enqueue.
fn no_call(name: &str) -> Error {
    Error::invalid(format!("schedule `{name}` has no task: give it one with `.call(..)` or `.task(..)`"))
}
