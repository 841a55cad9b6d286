//! Runs the jobs of the fetcher on an apalis worker. No other file knows apalis.
//!
//! apalis sees a backend that never fails: a bounded channel that is drained at shutdown. Each job runs on a tokio task
//! of its own and sends its end to the acker itself.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    error::WorkerError,
    layers::Identity,
    task::{Task, builder::TaskBuilder, task_id::TaskId},
    worker::{builder::WorkerBuilder, context::WorkerContext, ext::parallelize::ParallelizeExt},
};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    execute::{Job, execute},
    running::End,
};

/// Runs an apalis worker, and starts it again if it ends unexpectedly, until `stopping` is cancelled and the jobs that
/// run have ended. Jobs that still run when the caller drops this future end without effect in the store.
pub(super) async fn run(
    name: String,
    jobs: mpsc::Receiver<Job>,
    ends: mpsc::Sender<End>,
    stopping: CancellationToken,
) {
    let jobs = Jobs(Arc::new(Mutex::new(jobs)));
    let mut restarts = 0u32;
    while !stopping.is_cancelled() {
        match run_once(format!("{name}#{restarts}"), jobs.clone(), ends.clone(), stopping.clone()).await {
            Ok(()) => tracing::debug!(worker = name, "apalis worker stopped"),
            Err(error) => tracing::error!(worker = name, %error, "apalis worker ended, starting another"),
        }
        if !stopping.is_cancelled() {
            restarts += 1;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..500))).await;
        }
    }
}

/// Runs one apalis worker. Handlers are spawned, so that none can delay the loop. The future is boxed here, where its
/// type is concrete, because the compiler cannot prove across an await that it is `Send`.
fn run_once(
    name: String,
    jobs: Jobs,
    ends: mpsc::Sender<End>,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), WorkerError>> {
    // A handler that does not stop in time must not keep the acker from its end: it holds no sender of its own.
    let handler = move |job: Job| execute(job, ends.downgrade());
    let worker = WorkerBuilder::new(name).backend(jobs).parallelize(tokio::spawn).build(handler);
    let signal = async move {
        stop.cancelled().await;
        Ok::<(), std::io::Error>(())
    };
    Box::pin(worker.run_until(signal))
}

/// The jobs that the fetcher has sent. Clones share the channel, so that a restarted apalis worker continues with it.
#[derive(Clone)]
struct Jobs(Arc<Mutex<mpsc::Receiver<Job>>>);

impl Backend for Jobs {
    type Task = Task<Job>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let mut jobs = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        jobs.poll_recv(cx).map(|job| job.map(|job| Ok(into_task(job))))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

fn into_task(job: Job) -> Task<Job> {
    let lease = &job.task.lease;
    TaskBuilder::new(())
        .task_id(TaskId::from_string(lease.id.to_string()))
        .attempt(lease.errors.saturating_add(lease.crashes) as usize)
        .build()
        .map_args(|()| job)
}

impl BackendConfig for Jobs {
    type Args = Job;
    type Id = TaskId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        Identity::new()
    }
}
