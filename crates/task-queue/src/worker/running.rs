//! Tracks the running tasks of a worker: the data to stop and to settle each of them from any part of the worker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    store::{Attempt, Leased, Outcome, Resolution, Settlement},
    task::{Backoff, TaskOptions},
};

/// The reason why a running task is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// It was cancelled in the store.
    Cancelled,
    /// The worker shuts down and its grace time is over.
    Shutdown,
    /// The lease is lost: another worker may have the task.
    Lost,
}

/// The end of one lease, sent to the acker.
pub(super) struct End {
    pub(super) settlement: Settlement,
    pub(super) task: Arc<RunningTask>,
}

/// One running task. The slot is released after the end was sent to the acker.
pub(super) struct RunningTask {
    pub(super) lease: Leased,
    pub(super) options: TaskOptions,
    pub(super) stop: CancellationToken,
    worker: Uuid,
    worker_name: String,
    reason: Mutex<Option<StopReason>>,
    slot: Mutex<Option<OwnedSemaphorePermit>>,
    running: RunningTasks,
}

impl RunningTask {
    pub(super) fn new(
        lease: Leased,
        options: TaskOptions,
        worker: Uuid,
        worker_name: &str,
        slot: OwnedSemaphorePermit,
        running: &RunningTasks,
    ) -> Arc<Self> {
        let task = Arc::new(Self {
            lease,
            options,
            stop: CancellationToken::new(),
            worker,
            worker_name: worker_name.to_owned(),
            reason: Mutex::default(),
            slot: Mutex::new(Some(slot)),
            running: running.clone(),
        });
        lock(&running.held).insert(task.lease.id, task.clone());
        task
    }

    /// The reason why it was stopped, or `None`.
    pub(super) fn reason(&self) -> Option<StopReason> {
        *lock(&self.reason)
    }

    fn stop(&self, reason: StopReason) {
        lock(&self.reason).get_or_insert(reason);
        self.stop.cancel();
    }

    /// Decides after a failed attempt: a retry with its due time, or a dead letter.
    pub(super) fn retry(&self, wait: Option<std::time::Duration>) -> Resolution {
        let retry = self.lease.errors.saturating_add(1);
        if retry > self.lease.max_retries {
            return Resolution::DeadLetter;
        }
        let backoff: &Backoff = &self.options.backoff;
        again(wait.unwrap_or_else(|| backoff.delay(retry)), true)
    }

    /// Sends the end to the acker and releases the slot.
    pub(super) async fn end(
        self: &Arc<Self>,
        ends: &mpsc::Sender<End>,
        resolution: Resolution,
        outcome: Option<(Outcome, Option<String>)>,
    ) {
        let attempt = outcome.map(|(outcome, error)| Attempt {
            fence: self.lease.fence,
            worker: self.worker_name.clone(),
            started: self.lease.started,
            ended: Timestamp::now(),
            outcome,
            error,
        });
        let settlement = Settlement {
            id: self.lease.id,
            worker: self.worker,
            fence: self.lease.fence,
            attempt,
            resolution,
        };
        // The acker outlives every `RunningTask`. If it has ended nevertheless, the store puts the task back in its
        // queue when the worker retires.
        let _ = ends.send(End { settlement, task: self.clone() }).await;
        self.forget();
        drop(lock(&self.slot).take());
    }

    /// Increments a counter of this task.
    pub(super) fn count(&self, metric: &'static str) {
        metrics::counter!(metric, "task" => self.lease.name.clone(), "queue" => self.lease.queue.clone())
            .increment(1);
    }

    /// Removes the task from the running tasks, unless a later lease of the same task has taken its place.
    fn forget(&self) {
        let mut held = lock(&self.running.held);
        if held.get(&self.lease.id).is_some_and(|task| task.lease.fence == self.lease.fence) {
            held.remove(&self.lease.id);
        }
    }
}

pub(super) fn again(wait: std::time::Duration, counts: bool) -> Resolution {
    Resolution::Retry { due: Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX), counts }
}

/// All running tasks of a worker.
#[derive(Clone, Default)]
pub(super) struct RunningTasks {
    held: Arc<Mutex<HashMap<Uuid, Arc<RunningTask>>>>,
}

impl RunningTasks {
    pub(super) fn stop(&self, id: Uuid, reason: StopReason) {
        if let Some(task) = lock(&self.held).get(&id) {
            task.stop(reason);
        }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.held).len()
    }

    pub(super) fn stop_all(&self, reason: StopReason) {
        lock(&self.held).values().for_each(|task| task.stop(reason));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
