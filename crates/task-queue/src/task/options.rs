//! The options of a task kind, as `#[task(...)]` sets them and a call may override them.

use std::time::Duration;

use super::Backoff;

/// How a task kind is queued, retried and kept. All fields have `#[task]` attributes of the same name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskOptions {
    /// The queue it goes to; `default`.
    pub queue: &'static str,
    /// How many failures are retried; 3. The attempt after the last retry decides.
    pub retries: u32,
    /// How long a retry waits; 1 s doubling to 10 min, with full jitter.
    pub backoff: Backoff,
    /// After how long an attempt is aborted and counts as failed; never.
    pub timeout: Option<Duration>,
    /// Higher runs sooner; 0.
    pub priority: i32,
    /// At how many deaths of a worker under it the task is dead, whatever its retries; 5.
    pub crashes: u32,
    /// Whether at most one unfinished task with the same arguments may exist; no.
    pub unique: bool,
    /// How long after enqueue it expires if no worker has started it; never.
    pub expires: Option<Duration>,
    /// How long the record with its result is kept after the end; 1 day.
    pub result_ttl: Duration,
}

impl TaskOptions {
    /// The defaults named at the fields.
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
