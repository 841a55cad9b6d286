//! Runs one task once: creates its context, enforces its time limit, catches panics, and decides what follows.

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    registry::Prepared,
    running::{End, RunningTask, StopReason, again},
};
use crate::{
    client::TaskClient,
    store::{Outcome, Resolution},
    task::{Disposition, States, TaskContext, TaskError, context::Run},
};

/// A task ready to run.
pub(super) struct Job {
    pub(super) task: Arc<RunningTask>,
    run: Prepared,
    context: TaskContext,
}

impl Job {
    pub(super) fn new(
        task: Arc<RunningTask>,
        run: Prepared,
        states: Arc<States>,
        client: TaskClient,
        worker: &str,
    ) -> Self {
        let lease = &task.lease;
        let deadline = task
            .options
            .timeout
            .map(|limit| Timestamp::now().saturating_add(limit).unwrap_or(Timestamp::MAX));
        let context = TaskContext {
            inner: Arc::new(Run {
                id: lease.id,
                name: lease.name.clone(),
                queue: lease.queue.clone(),
                attempt: lease.errors.saturating_add(lease.crashes).saturating_add(1),
                max_retries: lease.max_retries,
                headers: lease.headers.clone(),
                worker: worker.to_owned(),
                deadline,
                stop: task.stop.clone(),
                states,
                client,
            }),
        };
        Self { task, run, context }
    }
}

/// Why a run did not succeed.
#[derive(Debug)]
enum Failure {
    Error(String, Disposition),
    TimedOut(Duration),
    Panicked(String),
    Stopped(StopReason),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(text, _) => f.write_str(text),
            Self::TimedOut(limit) => {
                write!(f, "aborted at its time limit of {}", settings::duration::format(*limit))
            }
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::Stopped(StopReason::Cancelled) => f.write_str("cancelled while it ran"),
            Self::Stopped(StopReason::Shutdown) => f.write_str("released at shutdown"),
            Self::Stopped(StopReason::Lost) => f.write_str("stopped because the lease was lost"),
        }
    }
}

/// The next state of a task, and its entry in the list of attempts.
type Conclusion = (Resolution, Option<(Outcome, Option<String>)>);

/// Runs a job and sends its end to the acker. Each call has its own tokio task. When the worker has ended meanwhile,
/// there is no acker any more, and the task runs again when its lease is over.
pub(super) async fn execute(job: Job, ends: mpsc::WeakSender<End>) {
    let task = job.task.clone();
    let run = async { conclude(&task, attempt(job).await) };
    // A panic outside of the function's own guard, such as in the drop of its future, settles the task as well.
    let (resolution, attempt) = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|panic| {
        let failure = Failure::Panicked(text_of(&*panic));
        (task.retry(None), Some((Outcome::Panicked, Some(failure.to_string()))))
    });
    if let Some(ends) = ends.upgrade() {
        task.end(&ends, resolution, attempt).await;
    }
}

/// Runs the task function once and returns its result as JSON.
async fn attempt(job: Job) -> Result<String, Failure> {
    let Job { task, run, context } = job;
    let name = task.lease.name.clone();
    let begun = Instant::now();
    metrics::counter!("tasks_started", "task" => name.clone()).increment(1);
    tracing::debug!(task = name, id = %task.lease.id, attempt = context.attempt(), "task started");
    let limit = task.options.timeout;
    let limited = async {
        match limit {
            Some(limit) => tokio::time::timeout(limit, run(context.clone())).await.map_err(|_| limit),
            None => Ok(run(context.clone()).await),
        }
    };
    let guarded = AssertUnwindSafe(context.clone().enter(limited)).catch_unwind();
    let outcome = tokio::select! {
        biased;
        () = task.stop.cancelled() => Err(Failure::Stopped(task.reason().unwrap_or(StopReason::Shutdown))),
        ended = guarded => match ended {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(error))) => Err(failed(&error)),
            Ok(Err(limit)) => Err(Failure::TimedOut(limit)),
            Err(panic) => Err(Failure::Panicked(text_of(&*panic))),
        },
    };
    // Another attempt may begin, so work that this attempt started on other threads must stop.
    if outcome.is_err() {
        task.stop.cancel();
    }
    metrics::histogram!("task_runtime_seconds", "task" => name).record(begun.elapsed().as_secs_f64());
    outcome
}

fn failed(error: &TaskError) -> Failure {
    Failure::Error(error.to_string(), error.disposition())
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}

/// Decides what follows an attempt, and logs a failure.
fn conclude(task: &RunningTask, result: Result<String, Failure>) -> Conclusion {
    let failure = match result {
        Ok(result) => return (Resolution::Succeed(Ok(result)), Some((Outcome::Succeeded, None))),
        Err(failure) => failure,
    };
    let (resolution, outcome) = match &failure {
        Failure::Error(_, Disposition::Retry) => (task.retry(None), Outcome::Failed),
        Failure::Error(_, Disposition::RetryAfter(wait)) => (task.retry(Some(*wait)), Outcome::Failed),
        Failure::Error(_, Disposition::Snooze(wait)) => (again(*wait, false), Outcome::Snoozed),
        Failure::Error(_, Disposition::Permanent) => (Resolution::DeadLetter, Outcome::Failed),
        Failure::TimedOut(_) => (task.retry(None), Outcome::TimedOut),
        Failure::Panicked(_) => (task.retry(None), Outcome::Panicked),
        Failure::Stopped(StopReason::Cancelled) => (Resolution::Cancel, Outcome::Cancelled),
        // If the lease was lost, the store refuses this because of its fence; that is harmless, and no attempt is
        // counted.
        Failure::Stopped(StopReason::Shutdown | StopReason::Lost) => {
            return (Resolution::Release, None);
        }
    };
    let lease = &task.lease;
    match &resolution {
        Resolution::DeadLetter => {
            tracing::error!(task = lease.name, id = %lease.id, error = %failure, "task is dead");
        }
        Resolution::Retry { due, counts: true } => {
            tracing::warn!(task = lease.name, id = %lease.id, error = %failure, %due, "task failed, retry stored");
        }
        _ => {
            tracing::info!(task = lease.name, id = %lease.id, reason = %failure, "task postponed or cancelled")
        }
    }
    (resolution, Some((outcome, Some(failure.to_string()))))
}
