//! Implements the subcommands `inspect` and `status`: tasks and workers as recorded in the store, with their ages.

use clap::{Args, Subcommand};
use settings::duration;
use terminal::plain;
use uuid::Uuid;

use super::output::{Output, brief, relative};
use crate::{
    Error, ErrorKind, Result,
    store::{Filter, State, TaskRecord, TaskStore, Waiting, WorkerRecord},
};

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(subcommand)]
    what: What,
    /// Maximum number of tasks to show
    #[arg(long, default_value_t = 100, global = true, value_name = "N")]
    limit: u32,
}

/// The subcommands of `inspect`.
#[derive(Debug, Subcommand)]
enum What {
    /// Tasks that workers hold now
    Active,
    /// Tasks that are due and wait for a worker
    Reserved,
    /// Tasks that wait for their time: countdown, eta or retry
    Scheduled,
    /// Tasks that are due, by queue and kind, and the number of live workers that claim them
    Waiting,
    /// Task kinds that live workers can run
    Registered,
    /// Counts by queue and state
    Stats,
    /// One task with all its attempts
    QueryTask {
        /// The task's id
        id: Uuid,
    },
}

impl InspectArgs {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output) -> Result<()> {
        let state = match self.what {
            What::Active => State::Running,
            What::Reserved => State::Queued,
            What::Scheduled => State::Scheduled,
            What::Waiting => return waiting(store, output).await,
            What::Registered => return registered(store, output).await,
            What::Stats => return stats(store, output).await,
            What::QueryTask { id } => return query(store, output, id).await,
        };
        let found = store.list(Filter { state: Some(state), limit: self.limit, ..Filter::default() }).await?;
        output.show(&found, |found| tasks(output, found, &format!("no {state} tasks")))?;
        Ok(())
    }
}

/// Formats a table of tasks.
pub(super) fn tasks(output: Output, found: &[TaskRecord], none: &str) -> String {
    let row = |task: &TaskRecord| {
        let when = match task.state {
            State::Scheduled => format!("due {}", relative(task.due)),
            State::Running => format!("started {}", task.started.map_or_else(String::new, relative)),
            State::Queued => format!("queued {}", relative(task.due)),
            _ => format!("ended {}", task.finished.map_or_else(String::new, relative)),
        };
        let attempts = task.errors + task.crashes;
        vec![
            task.id.to_string(),
            task.name.clone(),
            task.queue.clone(),
            task.state.to_string(),
            when,
            attempts.to_string(),
            brief(task.args.as_str(), 40),
            brief(task.error.as_deref().unwrap_or_default(), 60),
        ]
    };
    output.table(
        &["ID", "TASK", "QUEUE", "STATE", "WHEN", "FAILS", "ARGS", "ERROR"],
        found.iter().map(row).collect(),
        none,
    )
}

async fn waiting(store: &dyn TaskStore, output: Output) -> Result<()> {
    let waiting = store.waiting().await?;
    let patience = duration::in_days(store.patience());
    output.show(&waiting, |waiting| {
        let row = |kind: &Waiting| {
            let taken = match (kind.workers, kind.known) {
                (0, true) => "no live worker claims it from this queue".to_owned(),
                (0, false) => format!("no worker has registered it: dead {patience} after it falls due"),
                (workers, _) => format!("claimed by {workers}"),
            };
            vec![kind.queue.clone(), kind.name.clone(), kind.tasks.to_string(), relative(kind.oldest), taken]
        };
        let rows = waiting.iter().map(row).collect();
        output.table(&["QUEUE", "TASK", "DUE", "OLDEST", "WORKERS"], rows, "no task waits for a worker")
    })?;
    Ok(())
}

async fn registered(store: &dyn TaskStore, output: Output) -> Result<()> {
    let workers = store.workers().await?;
    let rows: Vec<(String, Vec<String>)> =
        workers.into_iter().map(|worker| (worker.info.name, worker.info.tasks)).collect();
    output.show(&rows, |rows| {
        let rows = rows.iter().map(|(name, tasks)| vec![name.clone(), tasks.join(", ")]).collect();
        output.table(&["WORKER", "TASKS"], rows, "no live workers")
    })?;
    Ok(())
}

async fn stats(store: &dyn TaskStore, output: Output) -> Result<()> {
    let stats = store.stats().await?;
    output.show(&stats, |stats| {
        let mut head = vec!["QUEUE"];
        head.extend(State::ALL.iter().map(|state| state.as_str()));
        let rows = stats.iter().map(|queue| {
            let name = if queue.paused { format!("{} (paused)", queue.queue) } else { queue.queue.clone() };
            let counts = State::ALL
                .iter()
                .map(|state| queue.counts.get(state).copied().unwrap_or_default().to_string());
            std::iter::once(name).chain(counts).collect()
        });
        output.table(&head, rows.collect(), "no tasks")
    })?;
    Ok(())
}

async fn query(store: &dyn TaskStore, output: Output, id: Uuid) -> Result<()> {
    let unknown =
        || Error::new(ErrorKind::NotFound, format!("task {id} is unknown or its result has expired"));
    let task = store.get(id).await?.ok_or_else(unknown)?;
    output.show(&task, |task| {
        let attempts = task.attempts.iter().map(|attempt| {
            vec![
                attempt.started.to_string(),
                attempt.ended.to_string(),
                format!("{:?}", attempt.outcome).to_lowercase(),
                attempt.worker.clone(),
                attempt.error.clone().unwrap_or_default(),
            ]
        });
        let attempts = output.table(
            &["STARTED", "ENDED", "OUTCOME", "WORKER", "ERROR"],
            attempts.collect(),
            "no attempts yet",
        );
        let result = task
            .result
            .as_ref()
            .map(|result| format!("result: {}\n", plain(&result.to_string())))
            .unwrap_or_default();
        let dropped = match task.attempts_dropped {
            0 => String::new(),
            dropped => format!("{dropped} older attempts are not kept\n"),
        };
        format!("{}\n{result}\n{dropped}{attempts}", tasks(output, std::slice::from_ref(task), ""))
    })?;
    Ok(())
}

/// Implements `status`: prints the live workers.
pub(super) async fn status(store: &dyn TaskStore, output: Output) -> Result<()> {
    let workers = store.workers().await?;
    output.show(&workers, |workers| {
        let row = |worker: &WorkerRecord| {
            vec![
                worker.info.name.clone(),
                worker.info.queues.join(","),
                format!("{}/{}", worker.running, worker.info.concurrency),
                relative(worker.started),
                relative(worker.heartbeat),
            ]
        };
        let rows = workers.iter().map(row).collect();
        output.table(&["WORKER", "QUEUES", "RUNNING", "STARTED", "HEARTBEAT"], rows, "no live workers")
    })?;
    Ok(())
}
