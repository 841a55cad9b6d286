//! The consuming side: a worker leases due tasks, runs them on apalis, and settles each in the store.
//!
//! ```text
//! store -> reader --bounded channel--> apalis worker -> handler (spawned) -> ack layer -> acker -> store
//!          lease (its own thread): heartbeat, stops, self-fencing             tend: housekeeping every second
//! ```
//! The reader takes a task only for a free slot. apalis sees a [`feed`] that never fails; whatever happens to the
//! store is between the store and the reader, acker and lease loops, which retry. A task is settled outside
//! every user layer, by its result alone, under the fence it was leased with.

mod acker;
mod apalis;
mod execute;
mod fetch;
mod heartbeat;
mod housekeeping;
mod registry;
mod running;

use std::{sync::Arc, time::Duration};

use apalis_core::{
    error::WorkerError,
    worker::{builder::WorkerBuilder, ext::parallelize::ParallelizeExt},
};
use futures_util::{FutureExt, future::BoxFuture};
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

/// How long functions that were told to stop may take to get there; one that blocks its thread never does.
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
#[must_use = "a worker works when it is run"]
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
    /// A worker on this store: all cores' number of slots, the queues of its tasks, 30 s to drain.
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

    /// Takes on a task kind.
    pub fn register<T: Task>(mut self, task: T) -> Self {
        self.registry.add(task);
        self
    }

    /// Gives task functions a value to take with [`State`](crate::State); one of each type.
    pub fn with_state<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.states.insert(value);
        self
    }

    /// Serves these queues instead of those that the registered tasks name.
    pub fn queues<Q: Into<String>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Runs this many tasks at once: at least one, at most 65,536.
    pub fn concurrency(mut self, slots: usize) -> Self {
        self.concurrency = slots.clamp(1, SLOTS);
        self
    }

    /// How long running tasks may finish at shutdown; then they are handed back unharmed.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The name shown to people; `worker@HOST:PID` by default. It need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The names of the registered tasks.
    pub fn registered(&self) -> Vec<String> {
        self.registry.names()
    }

    /// The queues it serves: those given, else those that the registered tasks name, and `default`.
    pub fn served(&self) -> Vec<String> {
        let mut queues = if self.queues.is_empty() { self.registry.queues() } else { self.queues.clone() };
        let mut seen = std::collections::HashSet::new();
        queues.retain(|queue| seen.insert(queue.clone()));
        queues
    }

    /// How many tasks it runs at once.
    pub fn slots(&self) -> usize {
        self.concurrency
    }

    /// Works until `shutdown` completes, then drains: takes nothing new, lets running tasks finish within the
    /// grace time, hands the rest back, settles what ended. It takes tasks of the registered kinds alone.
    ///
    /// # Errors
    /// At start: a task name registered twice, a state that a task needs and the worker lacks, or a store that
    /// cannot be written. Later troubles of the store are retried. At the end, when the store does not take what ended
    /// for as long as a lease lasts: those tasks run again. When a part of the worker has ended by itself, which it
    /// never should: then it stops rather than go on without.
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
        // Whoever drops this future ends every part of it.
        let (_no_work, _no_lease) = (stopping.clone().drop_guard(), lease_over.clone().drop_guard());
        let mut acker = AbortOnDropHandle::new(tokio::spawn(acker::run(self.store.clone(), ended)));
        let mut maintain =
            AbortOnDropHandle::new(tokio::spawn(housekeeping::run(self.store.clone(), stopping.clone())));
        let mut reader = AbortOnDropHandle::new(tokio::spawn(
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

        let feed = apalis::ApalisBackend::new(feed, ends);
        let mut apalis = Box::pin(supervise(info.name.clone(), feed, stopping.clone()).fuse());
        let broken = tokio::select! {
            () = shutdown => None,
            () = &mut apalis => Some("executor"),
            _ = &mut reader => Some("reader"),
            _ = &mut acker => Some("acker"),
            _ = &mut maintain => Some("housekeeping"),
            _ = &mut heartbeat => Some("heartbeat"),
        };
        stopping.cancel();
        if let Some(part) = broken {
            tracing::error!(worker = info.name, part, "a part of the worker has ended by itself: stopping");
            // Without a heartbeat, others may run these tasks as soon as the lease is over.
            running.stop_all(StopReason::Lost);
            let _ = tokio::time::timeout(STUBBORN, &mut apalis).await;
            let text = format!(
                "the {part} of worker {} has ended by itself; what it held runs again when its lease is over",
                info.name
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        // Past the grace time the handlers are dropped and their tasks handed back.
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
        // Every sender of ends is gone with reader, feed and handlers; the acker settles the rest and stops. What is
        // not settled within a lease is refused afterwards, so nobody waits longer.
        let settled = async {
            let _ = reader.await;
            let _ = acker.await;
            let _ = maintain.await;
            lease_over.cancel();
            let _ = heartbeat.await;
        };
        let patience = self.store.lease();
        if tokio::time::timeout(patience, settled).await.is_err() {
            let text = format!(
                "the store did not take what ended on worker {} within {}; those tasks run again",
                info.name,
                crate::duration::format(patience)
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        if !drained {
            // Handing back what still runs would have it run twice at a time: it goes on when the lease lapses.
            tracing::error!(
                worker = info.name,
                held = running.len(),
                "task functions that block do not stop; not waiting"
            );
            return Ok(());
        }
        let id = *identity.borrow();
        let late =
            || Error::new(ErrorKind::Unavailable, "the store did not take the worker off its list in time");
        let released = tokio::time::timeout(patience, self.store.retire(id)).await.map_err(|_| late())??;
        tracing::info!(worker = info.name, released, "worker stopped");
        Ok(())
    }
}

/// Runs the apalis worker, and anew should it ever end by itself, until the worker shuts down.
async fn supervise(name: String, feed: apalis::ApalisBackend, stopping: CancellationToken) {
    let mut restarts = 0u32;
    while !stopping.is_cancelled() {
        match one_life(format!("{name}#{restarts}"), feed.clone(), stopping.clone()).await {
            Ok(()) => tracing::debug!(worker = name, "apalis worker stopped"),
            Err(error) => tracing::error!(worker = name, %error, "apalis worker ended, starting another"),
        }
        if !stopping.is_cancelled() {
            restarts += 1;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..500))).await;
        }
    }
}

/// One apalis worker: handlers spawned, so that none can hold up the loop; acks come from the feed. Boxed here,
/// where its type is concrete: across an await the compiler cannot see that it is `Send`.
fn one_life(
    name: String,
    feed: apalis::ApalisBackend,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), WorkerError>> {
    let worker = WorkerBuilder::new(name).backend(feed).parallelize(tokio::spawn).build(execute::execute);
    let signal = async move {
        stop.cancelled().await;
        Ok::<(), std::io::Error>(())
    };
    Box::pin(worker.run_until(signal))
}

fn default_name() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "localhost".to_owned(), |name| name.trim().to_owned());
    format!("worker@{host}:{}", std::process::id())
}
