//! Implements the apalis backend of the worker: a bounded channel that never fails and is drained at shutdown, with
//! acks outside all layers.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    error::BoxDynError,
    task::{ExecutionContext, Task, builder::TaskBuilder, task_id::TaskId},
    worker::{
        context::WorkerContext,
        ext::ack::{Acknowledge, AcknowledgeLayer},
    },
};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{
    execute::{Done, Failure, Job},
    running::{End, RunningTask},
};

/// The jobs that the fetcher has sent. Clones share the channel, so that a restarted apalis worker continues with
/// it.
#[derive(Clone)]
pub(super) struct ApalisBackend {
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    ends: mpsc::Sender<End>,
}

impl ApalisBackend {
    pub(super) fn new(jobs: mpsc::Receiver<Job>, ends: mpsc::Sender<End>) -> Self {
        Self { jobs: Arc::new(Mutex::new(jobs)), ends }
    }
}

impl Backend for ApalisBackend {
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
        let mut jobs = self.jobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
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
        .data(job.task.clone())
        .build()
        .map_args(|()| job)
}

impl BackendConfig for ApalisBackend {
    type Args = Job;
    type Id = TaskId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = AcknowledgeLayer<Ack>;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        AcknowledgeLayer::new(Ack { ends: self.ends.clone() })
    }
}

/// Turns the result of a run into an [`End`] and sends it to the acker.
#[derive(Clone)]
pub(super) struct Ack {
    ends: mpsc::Sender<End>,
}

impl Acknowledge<Done> for Ack {
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<(), Infallible>>;

    fn ack(&mut self, result: &Result<Done, BoxDynError>, context: &ExecutionContext) -> Self::Future {
        let task: Option<Arc<RunningTask>> = context.data().get::<Arc<RunningTask>>().cloned();
        let ends = self.ends.clone();
        let failure = match result {
            Ok(done) => Ok(done.clone()),
            // An error of another type comes from the executor: a handler panicked outside its own guard.
            Err(error) => Err(match error.downcast_ref::<Failure>() {
                Some(failure) => failure.clone(),
                None => Failure::Panicked(error.to_string()),
            }),
        };
        Box::pin(async move {
            if let Some(task) = task {
                super::execute::conclude(&task, failure, &ends).await;
            }
            Ok(())
        })
    }
}
