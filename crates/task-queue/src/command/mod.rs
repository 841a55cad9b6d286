//! The command line in Celery's words, for `backbone task ...` and for a worker of one's own.
//!
//! ```no_run
//! use task_queue::task;
//!
//! #[task(queue = "email")]
//! async fn send_receipt(order: u64) -> Result<(), String> {
//!     Ok(())
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     task_queue::command::main(|worker| worker.register(send_receipt)).await
//! }
//! ```

mod call;
mod dead;
mod inspect;
mod output;
mod queue;
mod run;
mod schedule;

use std::{path::Path, process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};

use crate::{
    Error, ErrorKind, Result, TaskClient, Worker,
    store::{self, StoreUrl, TaskStore, url_beside_bus},
};
use output::Output;

/// The verbs. Nest them under a command of your own with `#[command(subcommand)]`, or use [`main`].
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum TaskCommand {
    /// Run tasks until interrupted; running ones finish first
    Worker(run::WorkerArgs),
    /// Fire schedules until interrupted; any number may run
    Beat,
    /// Look at tasks and workers
    Inspect(inspect::InspectArgs),
    /// Enqueue a task by name and print its id
    Call(call::CallArgs),
    /// Show how a task went
    Result(call::ResultArgs),
    /// Cancel tasks: waiting ones at once, running ones are asked to stop
    #[command(visible_alias = "revoke")]
    Cancel(call::CancelArgs),
    /// List live workers and how fresh that is
    Status,
    /// Delete waiting tasks
    Purge(queue::PurgeArgs),
    /// Stop hand-outs from a queue, across restarts
    Pause(queue::QueueArgs),
    /// Resume hand-outs from a queue
    Resume(queue::QueueArgs),
    /// Dead tasks: list, replay, drop
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Schedules: list, add, remove
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
}

/// Where to and how to show.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Settings {
    /// The task store's URL; see [`resolve_url`] for what stands in when it is `None`.
    pub url: Option<String>,
    /// JSON for programs instead of tables for people.
    pub json: bool,
}

impl Settings {
    /// These settings.
    pub fn new(url: Option<String>, json: bool) -> Self {
        Self { url, json }
    }
}

impl TaskCommand {
    /// Runs the verb. `register` adds tasks to a worker; `shutdown` ends `worker` and `beat`.
    ///
    /// # Errors
    /// What the store or the arguments said. Of several tasks named, those that were done are shown before.
    pub async fn run(
        self,
        settings: Settings,
        register: impl FnOnce(Worker) -> Worker,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let url = resolve_url(settings.url.as_deref())?;
        if url == DEFAULT_URL {
            private_files::create_folder(Path::new(DEFAULT_FOLDER)).map_err(|error| {
                let text = format!("the folder {DEFAULT_FOLDER} of the default task store cannot be made");
                Error::new(ErrorKind::Unavailable, text).with(error)
            })?;
        }
        let store = store::open(&url).await?;
        let output = Output::new(settings.json);
        match self {
            Self::Worker(args) => args.run(store, &url, register, shutdown).await,
            Self::Beat => crate::Beat::new(store).run_until(shutdown).await,
            Self::Inspect(args) => args.run(&*store, output).await,
            Self::Call(args) => args.run(&TaskClient::new(store), output).await,
            Self::Result(args) => args.run(&TaskClient::new(store), output).await,
            Self::Cancel(args) => args.run(&*store, output).await,
            Self::Status => inspect::status(&*store, output).await,
            Self::Purge(args) => args.run(&*store, output).await,
            Self::Pause(args) => args.run(&*store, output, true).await,
            Self::Resume(args) => args.run(&*store, output, false).await,
            Self::Dead(command) => command.run(&*store, output).await,
            Self::Schedule(command) => command.run(&*store, output).await,
        }
    }
}

/// The folder of [`DEFAULT_URL`]; [`TaskCommand::run`] makes it when it is missing.
const DEFAULT_FOLDER: &str = "backbone-data";

/// The store when nothing names one: the one beside the default bus.
pub const DEFAULT_URL: &str = "sqlite:backbone-data/bus-tasks.db";

/// The store to use: the one given, else `CELERY_BROKER_URL`, else the one beside the bus in `EVENT_BUS_URL`, else
/// [`DEFAULT_URL`].
///
/// # Errors
/// When a variable names a store that this build cannot open, or `CELERY_RESULT_BACKEND` names another store: results live with the tasks.
pub fn resolve_url(given: Option<&str>) -> Result<String> {
    resolve(given, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn resolve(given: Option<&str>, read: impl Fn(&str) -> Option<String>) -> Result<String> {
    let url = match (given, read("CELERY_BROKER_URL"), read("EVENT_BUS_URL")) {
        (Some(url), ..) => url.to_owned(),
        (None, Some(url), _) => named("CELERY_BROKER_URL", StoreUrl::parse(&url).map(|_| url.clone()))?,
        (None, None, Some(bus)) => named("EVENT_BUS_URL", url_beside_bus(&bus))?,
        (None, None, None) => DEFAULT_URL.to_owned(),
    };
    if let Some(backend) = read("CELERY_RESULT_BACKEND") {
        let StoreUrl::Sqlite(results) = named("CELERY_RESULT_BACKEND", StoreUrl::parse(&backend))?;
        let StoreUrl::Sqlite(tasks) = StoreUrl::parse(&url)?;
        if results.path != tasks.path {
            let text = format!(
                "CELERY_RESULT_BACKEND is {backend} and the task store {url}: results live in the task store, unset the former"
            );
            return Err(Error::new(ErrorKind::Url, text));
        }
    }
    Ok(url)
}

fn named<T>(variable: &str, outcome: Result<T>) -> Result<T> {
    outcome.map_err(|error| Error::new(error.kind(), variable.to_owned()).with(error))
}

/// Tasks on the command line.
#[derive(Debug, Parser)]
#[command(about = "Run, call and look at tasks")]
struct Cli {
    /// The task store, such as sqlite:./tasks.db (else CELERY_BROKER_URL, EVENT_BUS_URL, else sqlite:backbone-data/bus-tasks.db)
    #[arg(short = 'b', long = "broker", visible_alias = "url", value_name = "URL", global = true)]
    broker: Option<String>,
    /// JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: TaskCommand,
}

/// The whole `main` of a program with tasks of its own: all verbs, ended by SIGINT or SIGTERM.
pub async fn main(register: impl FnOnce(Worker) -> Worker) -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run(Settings::new(cli.broker, cli.json), register, signalled()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::exit_code(&error, &error.to_string()),
    }
}

/// SIGINT or SIGTERM.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without handlers the signals end the process as usual.
        _ => std::future::pending().await,
    }
}

type Shared = Arc<dyn TaskStore>;

#[cfg(test)]
mod tests {
    use super::*;

    fn with(given: Option<&str>, environment: &[(&str, &str)]) -> Result<String> {
        resolve(given, |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_store_is_the_one_given_or_celerys_or_beside_the_bus() {
        let both = [("CELERY_BROKER_URL", "sqlite:b.db"), ("EVENT_BUS_URL", "sqlite:dir/bus.db")];
        assert_eq!(with(Some("sqlite:a.db"), &both).unwrap(), "sqlite:a.db");
        assert_eq!(with(None, &both).unwrap(), "sqlite:b.db");
        assert_eq!(with(None, &both[1..]).unwrap(), "sqlite:dir/bus-tasks.db");
        assert_eq!(with(None, &[]).unwrap(), DEFAULT_URL);
    }

    #[test]
    fn other_brokers_are_refused_by_the_variable_that_names_them() {
        for variable in ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "EVENT_BUS_URL"] {
            let given = (variable == "CELERY_RESULT_BACKEND").then_some("sqlite:a.db");
            let error = with(given, &[(variable, "redis://localhost:6379/0")]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Url);
            let text = error.to_string();
            assert!(text.contains(variable) && text.contains("sqlite:PATH"), "{text}");
        }
        let elsewhere = with(Some("sqlite:a.db"), &[("CELERY_RESULT_BACKEND", "sqlite:b.db")]).unwrap_err();
        assert!(elsewhere.to_string().contains("results live in the task store"), "{elsewhere}");
        with(Some("sqlite:a.db"), &[("CELERY_RESULT_BACKEND", "sqlite:a.db")]).unwrap();
    }
}
