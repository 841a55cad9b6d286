//! Claims due tasks for free slots, decodes them, and sends them to the worker. Between claims it waits for
//! notifications and due times instead of polling constantly.

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

/// The interval of claims without a notification, in case one was lost.
const POLL: Duration = Duration::from_secs(1);
/// The maximum number of tasks leased by one claim.
const BATCH: usize = 1000;

pub(super) struct Fetcher {
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) registry: Arc<Registry>,
    pub(super) states: Arc<States>,
    pub(super) client: TaskClient,
    pub(super) info: WorkerInfo,
    /// The id under which the worker currently holds its lease.
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
            // The claim is not raced with the stop signal: the fetcher waits for a claim in progress, because its
            // tasks would otherwise stay leased until the worker retires.
            match self.store.claim(claim).await {
                Ok(claimed) => {
                    failures = 0;
                    let wait = pause(&claimed);
                    let got = !claimed.tasks.is_empty();
                    for lease in claimed.tasks {
                        let slot = free.pop().expect("a claim returns at most `limit` tasks");
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
                        // When the heartbeat gets a new lease after losing one, the identity changes.
                        _ = self.identity.changed() => {}
                        () = sleep(Duration::from_millis(fastrand::u64(ceiling / 2..=ceiling))) => {}
                    }
                }
            }
        }
    }

    /// Waits for one free slot and takes all other free slots, up to [`BATCH`]; `false` when the semaphore is
    /// closed.
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

    /// Decodes a task and sends it to the worker. A task whose arguments do not fit becomes a dead letter at once.
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

/// Returns the wait after an empty claim: until the next due time, but at most [`POLL`].
fn pause(claimed: &Claimed) -> Duration {
    let Some(due) = claimed.next_due else { return POLL };
    // One millisecond is added, because timers may fire within their last millisecond and a task must not run
    // early.
    let wait = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    (wait + Duration::from_millis(1)).min(POLL)
}
