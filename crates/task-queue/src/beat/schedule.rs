//! A schedule as code declares it.

use std::time::Duration;

use jiff::Timestamp;

use super::{Missed, Timing, no_call, timing};
use crate::{
    Error, Result,
    client::Call,
    store::{NewTask, ScheduleRecord},
    task::Task,
};

/// A named schedule: when, in which zone, and what to enqueue.
#[derive(Debug, Clone)]
#[must_use = "a schedule fires when a scheduler has it"]
pub struct Schedule {
    record: ScheduleRecord,
    timing: Timing,
}

impl Schedule {
    /// By a cron expression in UTC; see [`Timing`].
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn cron(name: impl Into<String>, expression: &str) -> Result<Self> {
        Ok(Self::new(name, Timing::cron(expression)?))
    }

    /// At each such time from now on.
    ///
    /// # Errors
    /// When it is shorter than 100 ms.
    pub fn every(name: impl Into<String>, interval: Duration) -> Result<Self> {
        Ok(Self::new(name, Timing::every(interval)?))
    }

    /// By any timing.
    pub fn new(name: impl Into<String>, timing: Timing) -> Self {
        let start = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).expect("now is a time");
        let record = ScheduleRecord {
            name: name.into(),
            timing: timing.to_string(),
            tz: "UTC".to_owned(),
            missed: Missed::default().to_string(),
            task: String::new(),
            queue: String::new(),
            args: serde_json::Value::Array(Vec::new()),
            kwargs: None,
            priority: 0,
            max_retries: 0,
            start,
            next: None,
            last: None,
            fired: 0,
        };
        Self { record, timing }
    }

    /// Reads cron fields in this IANA time zone.
    ///
    /// # Errors
    /// When there is no such zone.
    pub fn zone(mut self, name: &str) -> Result<Self> {
        timing::zone(name)?;
        self.record.tz = name.to_owned();
        Ok(self)
    }

    /// What happens to times that no scheduler was there for; [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.record.missed = missed.to_string();
        self
    }

    /// Enqueues this call, with its queue, priority and retries.
    ///
    /// # Errors
    /// When the arguments cannot be written as JSON.
    pub fn call<T: Task>(self, call: Call<T>) -> Result<Self> {
        self.task(call.into_task()?)
    }

    /// Enqueues a task like this one, by name.
    ///
    /// # Errors
    /// When the arguments are no JSON array, or those by name no JSON object.
    pub fn task(mut self, task: NewTask) -> Result<Self> {
        if task.name.is_empty() {
            return Err(no_call(&self.record.name));
        }
        let json = |text: &str| {
            serde_json::from_str::<serde_json::Value>(text)
                .map_err(|error| Error::invalid(format!("`{text}` is no json")).with(error))
        };
        let args = json(&task.args)?;
        if !args.is_array() {
            return Err(Error::invalid(format!("the arguments are no json array: {args}")));
        }
        let kwargs = task.kwargs.as_deref().map(json).transpose()?;
        if kwargs.as_ref().is_some_and(|kwargs| !kwargs.is_object()) {
            return Err(Error::invalid("the arguments by name are no json object"));
        }
        self.record.task = task.name;
        self.record.queue = task.queue;
        self.record.args = args;
        self.record.kwargs = kwargs;
        self.record.priority = task.priority;
        self.record.max_retries = task.max_retries;
        Ok(self)
    }

    /// The record with its first nominal time.
    pub fn into_record(self) -> ScheduleRecord {
        let mut record = self.record;
        let tz = timing::zone(&record.tz).expect("checked when it was set");
        // The first firing of an interval is one interval from now, as in Celery; the start only anchors its grid.
        record.next = self.timing.next(record.start, &tz, record.start);
        record
    }
}
