//! Defines the error of a task function and the action that follows it.

use std::{fmt, time::Duration};

/// The action after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Retry with the task's backoff while retries are left.
    Retry,
    /// Retry after this time while retries are left.
    RetryAfter(Duration),
    /// Run again after this time without using up a retry.
    Snooze(Duration),
    /// Becomes a dead letter at once, because no retry would help.
    Permanent,
}

/// The error of a task function: any error, with the action that follows it.
///
/// `?` turns every `std::error::Error` (and `String`, `&str`) into a `TaskError` that is retried. Like
/// `anyhow::Error`, this type does not implement `std::error::Error` itself, because that would conflict with this
/// conversion.
pub struct TaskError {
    disposition: Disposition,
    error: Box<dyn std::error::Error + Send + Sync>,
}

impl TaskError {
    /// Fails permanently: the task becomes a dead letter at once.
    pub fn permanent(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { disposition: Disposition::Permanent, error: error.into() }
    }

    /// Fails; the task is retried after `wait` instead of the backoff, while retries are left.
    pub fn retry_after(wait: Duration, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { disposition: Disposition::RetryAfter(wait), error: error.into() }
    }

    /// Postpones the task: it runs again after `wait` without using up a retry.
    pub fn snooze(wait: Duration) -> Self {
        Self { disposition: Disposition::Snooze(wait), error: "snoozed".into() }
    }

    /// The action that follows.
    pub fn disposition(&self) -> Disposition {
        self.disposition
    }

    /// The error itself.
    pub fn error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.error
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self { disposition: Disposition::Retry, error: error.into() }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)?;
        let mut source = self.error.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskError({:?}: {self})", self.disposition)
    }
}
