//! Defines the options of a task kind, which `#[task(...)]` sets and a call may override.

use std::time::Duration;

use super::Backoff;

/// The options for queueing, retrying and keeping tasks of one kind. All fields have `#[task]` attributes of the
/// same name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskOptions {
    /// The queue of its tasks; default `default`.
    pub queue: &'static str,
    /// The maximum number of failures that are retried; default 3. When the attempt of the last retry fails, the
    /// task is dead.
    pub retries: u32,
    /// The delay before a retry; default 1 s doubling to 10 min, with full jitter.
    pub backoff: Backoff,
    /// The time limit of an attempt, after which it is aborted and counts as failed; default none.
    pub timeout: Option<Duration>,
    /// The priority: higher runs sooner; default 0.
    pub priority: i32,
    /// The number of worker crashes during the task at which it becomes dead, however many retries are left;
    /// default 5.
    pub crashes: u32,
    /// Whether at most one unfinished task with the same arguments may exist; default no.
    pub unique: bool,
    /// The time after enqueue at which it expires if no worker has started it; default never.
    pub expires: Option<Duration>,
    /// The time that the record with its result is kept after the end; default 1 day.
    pub result_ttl: Duration,
}

impl TaskOptions {
    /// The defaults that the fields document.
    pub const DEFAULT: Self = Self {
        queue: "default",
        retries: 3,
        backoff: Backoff::DEFAULT,
        timeout: None,
        priority: 0,
        crashes: 5,
        unique: false,
        expires: None,
        result_ttl: Duration::from_secs(86_400),
    };
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}
