//! Claims due tasks for free slots, decodes them, and feeds the worker; waits on hints and due times, not on a
//! hot poll.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    execute::Job,
    registry::Registry,
    running::{End, RunningTask, RunningTasks},
};
use crate::{
    ErrorKind,
    client::TaskClient,
    store::{Channel, Claim, Claimed, Leased, Outcome, Resolution, TaskStore, WorkerInfo},
    task::States,
};

/// A look without a hint, in case one was lost.
const POLL: Duration = Duration::from_secs(1);
/// Tasks leased in one go at most.
const BATCH: usize = 1000;

pub(super) struct Fetcher {
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) registry: Arc<Registry>,
    pub(super) states: Arc<States>,
    pub(super) client: TaskClient,
    pub(super) info: WorkerInfo,
    /// The id under which the worker holds its lease now.
    pub(super) identity: watch::Receiver<Uuid>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) running: RunningTasks,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) ends: mpsc::Sender<End>,
    pub(super) stopping: CancellationToken,
}

impl Fetcher {
    pub(super) async fn run(mut self) {
        let stopping = self.stopping.clone();
        let mut free = Vec::new();
        let mut work = self.store.notifier().watch(Channel::Work);
        let mut failures = 0u32;
        let queues: Arc<[String]> = self.info.queues.clone().into();
        let kinds: Arc<[String]> = self.info.tasks.clone().into();
        loop {
            let took = tokio::select! {
                () = stopping.cancelled() => return,
                took = self.take_slots(&mut free) => took,
            };
            if !took {
                return;
            }
            work.mark_unchanged();
            let worker = *self.identity.borrow_and_update();
            let claim = Claim { worker, queues: queues.clone(), kinds: kinds.clone(), limit: free.len() };
            // Not raced with the stop: a claim that is under way is waited for, or its tasks would hang about
            // until the worker retires.
            match self.store.claim(claim).await {
                Ok(claimed) => {
                    failures = 0;
                    let wait = pause(&claimed);
                    let got = !claimed.tasks.is_empty();
                    for lease in claimed.tasks {
                        let slot = free.pop().expect("a claim gives no more than it was asked for");
                        self.hand_over(lease, worker, slot).await;
                    }
                    if !got {
                        tokio::select! {
                            () = stopping.cancelled() => return,
                            _ = timeout(wait, work.changed()) => {}
                        }
                    }
                }
                Err(error) => {
                    failures += 1;
                    if error.kind() == ErrorKind::Fenced {
                        tracing::debug!(%error, "waiting for a new lease");
                    } else {
                        tracing::warn!(%error, failures, "claiming tasks failed, trying again");
                    }
                    let ceiling = 50u64 << failures.min(6);
                    tokio::select! {
                        () = stopping.cancelled() => return,
                        // A lease lost and got anew shows as another identity.
                        _ = self.identity.changed() => {}
                        () = sleep(Duration::from_millis(fastrand::u64(ceiling / 2..=ceiling))) => {}
                    }
                }
            }
        }
    }

    /// Waits for one free slot and takes what else is free; `false` when there will be none.
    async fn take_slots(&self, free: &mut Vec<OwnedSemaphorePermit>) -> bool {
        if free.is_empty() {
            match self.slots.clone().acquire_owned().await {
                Ok(slot) => free.push(slot),
                Err(_) => return false,
            }
        }
        while free.len() < BATCH {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { break };
            free.push(slot);
        }
        true
    }

    /// Decodes a task and feeds it to the worker. One whose arguments do not fit is dead at once.
    async fn hand_over(&self, lease: Leased, worker: Uuid, slot: OwnedSemaphorePermit) {
        let wait = Timestamp::now().duration_since(lease.due);
        metrics::histogram!("task_wait_seconds", "queue" => lease.queue.clone())
            .record(wait.as_secs_f64().max(0.0));
        let options = self.registry.options(&lease.name);
        let prepared = self.registry.prepare(&lease);
        let task = RunningTask::new(lease, options, worker, &self.info.name, slot, &self.running);
        match prepared {
            Ok(run) => {
                let job = Job::new(task, run, self.states.clone(), self.client.clone(), &self.info.name);
                if let Err(unsent) = self.jobs.send(job).await {
                    unsent.0.task.end(&self.ends, Resolution::Release, None).await;
                }
            }
            Err(error) => {
                tracing::warn!(task = task.lease.name, id = %task.lease.id, %error, "task cannot be run");
                task.end(
                    &self.ends,
                    Resolution::DeadLetter,
                    Some((Outcome::Failed, Some(error.to_string()))),
                )
                .await;
            }
        }
    }
}

/// How long to wait after an empty claim: to the next due time, and no longer than the slow poll.
fn pause(claimed: &Claimed) -> Duration {
    let Some(due) = claimed.next_due else { return POLL };
    // A millisecond on top: timers may fire within their last millisecond and due times are never early.
    let wait = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    (wait + Duration::from_millis(1)).min(POLL)
}
