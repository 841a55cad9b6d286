//! Consumes tasks: a worker leases due tasks, runs them on apalis, and settles each in the store.
//!
//! ```text
//! store -> fetcher --bounded channel--> apalis worker -> handler (spawned) -> acker -> store
//!          heartbeat (its own thread): renew, stop, self-fencing   housekeeping: every second
//! ```
//! These names are the parts of a worker in error texts: `fetcher`, `executor` (the apalis worker), `acker`,
//! `housekeeping` and `heartbeat`. The fetcher claims a task only for a free slot. apalis sees a backend (`apalis.rs`) that
//! never fails: only the fetcher, the acker, the heartbeat and housekeeping call the store, and they retry its errors.
//! A task is settled outside every user layer, by its result alone, under the fence of its lease.

mod acker;
mod apalis;
mod execute;
mod fetch;
mod heartbeat;
mod housekeeping;
mod registry;
mod running;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::{
    Error, ErrorKind, Result,
    bounds::SLOTS,
    client::TaskClient,
    store::{TaskStore, WorkerInfo},
    task::{States, Task},
};
use registry::Registry;
use running::{RunningTasks, StopReason};

/// The time that task functions have to stop after they were cancelled; a function that blocks its thread never
/// stops.
const STUBBORN: Duration = Duration::from_secs(5);

/// Runs tasks from a store.
///
/// ```no_run
/// # use task_queue::{task, Worker, store};
/// # #[task] async fn send_receipt(order: u64) -> Result<(), String> { Ok(()) }
/// # async fn run() -> task_queue::Result<()> {
/// let store = store::open("sqlite:./tasks.db").await?;
/// Worker::new(store).register(send_receipt).concurrency(8).run_until(std::future::pending()).await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a worker does nothing until `run_until` is awaited"]
pub struct Worker {
    store: Arc<dyn TaskStore>,
    registry: Registry,
    states: States,
    queues: Vec<String>,
    concurrency: usize,
    grace: Duration,
    name: Option<String>,
}

impl Worker {
    /// Creates a worker on this store with one slot per core, the queues of its tasks, and 30 s to drain.
    pub fn new(store: Arc<dyn TaskStore>) -> Self {
        let concurrency = std::thread::available_parallelism().map_or(4, usize::from);
        Self {
            store,
            registry: Registry::default(),
            states: States::default(),
            queues: Vec::new(),
            concurrency,
            grace: Duration::from_secs(30),
            name: None,
        }
    }

    /// Registers a task kind.
    pub fn register<T: Task>(mut self, task: T) -> Self {
        self.registry.add(task);
        self
    }

    /// Adds a value that task functions take with [`State`](crate::State); one of each type.
    pub fn with_state<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.states.insert(value);
        self
    }

    /// Sets the queues to serve, instead of the queues of the registered tasks.
    pub fn queues<Q: Into<String>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the number of tasks that run at once: at least one, at most 65,536.
    pub fn concurrency(mut self, slots: usize) -> Self {
        self.concurrency = slots.clamp(1, SLOTS);
        self
    }

    /// Sets the time that running tasks have to finish at shutdown; after it they are released without counting an
    /// attempt.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets the name shown to people; `worker@HOST:PID` by default. It need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The names of the registered tasks.
    pub fn registered(&self) -> Vec<String> {
        self.registry.names()
    }

    /// The queues that it serves: the queues given to [`queues`](Self::queues), else the queues of the registered
    /// tasks and `default`.
    pub fn served(&self) -> Vec<String> {
        let mut queues = if self.queues.is_empty() { self.registry.queues() } else { self.queues.clone() };
        let mut seen = std::collections::HashSet::new();
        queues.retain(|queue| seen.insert(queue.clone()));
        queues
    }

    /// The number of tasks that it runs at once.
    pub fn slots(&self) -> usize {
        self.concurrency
    }

    /// Runs until `shutdown` completes, then drains: claims no new tasks, lets running tasks finish within the
    /// grace time, releases the others, and settles the ended tasks. It claims only tasks of the registered kinds.
    ///
    /// # Errors
    /// At start: a task name is registered twice, the worker lacks a state that a task needs, or the store cannot
    /// be written. Later errors of the store are retried. At the end: the store did not record the ends of tasks
    /// for as long as a lease lasts; those tasks run again. At any time: a part of the worker has ended
    /// unexpectedly; the worker then stops, because it cannot continue without that part.
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        self.registry.check(&self.states)?;
        let info = WorkerInfo {
            id: Uuid::now_v7(),
            queues: self.served(),
            name: self.name.unwrap_or_else(default_name),
            tasks: self.registry.names(),
            concurrency: self.concurrency,
        };
        self.store.publish(self.registry.kinds()).await?;
        self.store.register(info.clone()).await?;
        tracing::info!(worker = info.name, id = %info.id, queues = ?info.queues, tasks = ?info.tasks, "worker started");

        let stopping = CancellationToken::new();
        let lease_over = CancellationToken::new();
        let running = RunningTasks::default();
        let (identity, _) = watch::channel(info.id);
        let (jobs, feed) = mpsc::channel(self.concurrency);
        let (ends, ended) = mpsc::channel(self.concurrency.max(256));

        let mut heartbeat = heartbeat::start(
            self.store.clone(),
            info.clone(),
            identity.clone(),
            running.clone(),
            lease_over.clone(),
        )?;
        // When the caller drops this future, the guards end all its parts.
        let (_no_work, _no_lease) = (stopping.clone().drop_guard(), lease_over.clone().drop_guard());
        let mut acker = AbortOnDropHandle::new(tokio::spawn(acker::run(self.store.clone(), ended)));
        let mut housekeeping =
            AbortOnDropHandle::new(tokio::spawn(housekeeping::run(self.store.clone(), stopping.clone())));
        let mut fetcher = AbortOnDropHandle::new(tokio::spawn(
            fetch::Fetcher {
                store: self.store.clone(),
                registry: Arc::new(self.registry),
                states: Arc::new(self.states),
                client: TaskClient::new(self.store.clone()),
                info: info.clone(),
                identity: identity.subscribe(),
                slots: Arc::new(Semaphore::new(self.concurrency)),
                running: running.clone(),
                jobs,
                ends: ends.clone(),
                stopping: stopping.clone(),
            }
            .run(),
        ));

        let mut apalis = Box::pin(apalis::run(info.name.clone(), feed, ends, stopping.clone()).fuse());
        let broken = tokio::select! {
            () = shutdown => None,
            () = &mut apalis => Some("executor"),
            _ = &mut fetcher => Some("fetcher"),
            _ = &mut acker => Some("acker"),
            _ = &mut housekeeping => Some("housekeeping"),
            _ = &mut heartbeat => Some("heartbeat"),
        };
        stopping.cancel();
        if let Some(part) = broken {
            tracing::error!(
                worker = info.name,
                part,
                "a part of the worker has ended unexpectedly: stopping"
            );
            // Without a heartbeat, other workers may run these tasks as soon as the lease expires.
            running.stop_all(StopReason::Lost);
            let _ = tokio::time::timeout(STUBBORN, &mut apalis).await;
            let text = format!(
                "the {part} of worker {} has ended unexpectedly; its tasks run again when its lease is over",
                info.name
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        // After the grace time the handlers are dropped and their tasks released.
        let cutoff = async {
            tokio::time::sleep(self.grace).await;
            running.stop_all(StopReason::Shutdown);
            tokio::time::sleep(STUBBORN).await;
        };
        let drained = tokio::select! {
            () = &mut apalis => true,
            () = cutoff => false,
        };
        drop(apalis);
        // The fetcher and the apalis worker have dropped all senders of ends; the acker settles the rest and stops. The
        // store refuses a settlement that comes later than a lease, so waiting longer is useless.
        let settled = async {
            let _ = fetcher.await;
            let _ = acker.await;
            let _ = housekeeping.await;
            lease_over.cancel();
            let _ = heartbeat.await;
        };
        let patience = self.store.lease();
        if tokio::time::timeout(patience, settled).await.is_err() {
            let text = format!(
                "the store did not record the ends of tasks on worker {} within {}; those tasks run again",
                info.name,
                settings::duration::format(patience)
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        if !drained {
            // If the worker released tasks that still run, they would run twice at a time; they run again when the
            // lease expires.
            tracing::error!(
                worker = info.name,
                held = running.len(),
                "blocking task functions did not stop; not waiting for them"
            );
            return Ok(());
        }
        let id = *identity.borrow();
        let late = || {
            Error::new(ErrorKind::Unavailable, "the store did not remove the worker from its list in time")
        };
        let released = tokio::time::timeout(patience, self.store.retire(id)).await.map_err(|_| late())??;
        tracing::info!(worker = info.name, released, "worker stopped");
        Ok(())
    }
}

fn default_name() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "localhost".to_owned(), |name| name.trim().to_owned());
    format!("worker@{host}:{}", std::process::id())
}
