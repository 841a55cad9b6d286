//! Implements the command line with Celery's subcommands, for `backbone task ...` and for programs with their own
//! worker.
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

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    Error, ErrorKind, Result, TaskClient, Worker,
    store::{self, StoreUrl, url_beside_bus},
};
use output::Output;

/// The subcommands. Nest them under your own command with `#[command(subcommand)]`, or use [`main`].
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum TaskCommand {
    /// Run tasks until interrupted; running ones finish first
    Worker(run::WorkerArgs),
    /// Fire schedules until interrupted; any number of schedulers may run
    Beat,
    /// Show tasks and workers
    Inspect(inspect::InspectArgs),
    /// Enqueue a task by name and print its id
    Call(call::CallArgs),
    /// Show the outcome of a task
    Result(call::ResultArgs),
    /// Cancel tasks: waiting tasks end at once, running tasks are stopped
    #[command(visible_alias = "revoke")]
    Cancel(call::CancelArgs),
    /// List live workers and the age of their last heartbeat
    Status,
    /// Delete waiting tasks
    Purge(queue::PurgeArgs),
    /// Stop workers from claiming tasks of a queue, across restarts
    Pause(queue::QueueArgs),
    /// Let workers claim tasks of a queue again
    Resume(queue::QueueArgs),
    /// Dead tasks: list, replay, drop
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Schedules: list, add, remove
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
}

/// The store and the output format of a command.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Settings {
    /// The task store's URL; when it is `None`, [`resolve_url`] chooses one.
    pub url: Option<String>,
    /// Print JSON for programs instead of tables for people.
    pub json: bool,
}

impl Settings {
    /// Creates settings with these values.
    pub fn new(url: Option<String>, json: bool) -> Self {
        Self { url, json }
    }
}

impl TaskCommand {
    /// Runs the subcommand. `register` adds tasks to a worker; `shutdown` ends `worker` and `beat`.
    ///
    /// # Errors
    /// Errors of the store and invalid arguments. When some of several named tasks fail, the result for the others
    /// is printed first.
    pub async fn run(
        self,
        settings: Settings,
        register: impl FnOnce(Worker) -> Worker,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let url = resolve_url(settings.url.as_deref())?;
        if url == DEFAULT_URL {
            private_files::create_folder(Path::new(DEFAULT_FOLDER)).map_err(|error| {
                let text = format!("cannot create the folder {DEFAULT_FOLDER} of the default task store");
                Error::new(ErrorKind::Unavailable, text).because(error)
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

/// The folder of [`DEFAULT_URL`]; [`TaskCommand::run`] creates it when it is missing.
const DEFAULT_FOLDER: &str = "backbone-data";

/// The default store URL: the store beside the default bus.
pub const DEFAULT_URL: &str = "sqlite:backbone-data/bus-tasks.db";

/// Returns the URL of the store to use: the given one, else `CELERY_BROKER_URL`, else the store beside the bus in
/// `EVENT_BUS_URL`, else [`DEFAULT_URL`].
///
/// # Errors
/// When a variable names a store that this build cannot open, or when `CELERY_RESULT_BACKEND` names another store:
/// the task store also holds the results.
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
                "CELERY_RESULT_BACKEND is {backend} and the task store is {url}: results are stored in the task store, \
                 unset CELERY_RESULT_BACKEND"
            );
            return Err(Error::new(ErrorKind::Url, text));
        }
    }
    Ok(url)
}

fn named<T>(variable: &str, outcome: Result<T>) -> Result<T> {
    outcome.map_err(|error| Error::new(error.kind(), variable.to_owned()).because(error))
}

/// The command line of a program with tasks.
#[derive(Debug, Parser)]
#[command(about = "Run, call and inspect tasks")]
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

/// The whole `main` of a program with its own tasks: runs every subcommand, and ends on SIGINT or SIGTERM.
pub async fn main(register: impl FnOnce(Worker) -> Worker) -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run(Settings::new(cli.broker, cli.json), register, signalled()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::exit_code(&error, &error.to_string()),
    }
}

/// Completes on SIGINT or SIGTERM.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without these handlers the signals end the process as usual.
        _ => std::future::pending().await,
    }
}

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
        assert!(elsewhere.to_string().contains("results are stored in the task store"), "{elsewhere}");
        with(Some("sqlite:a.db"), &[("CELERY_RESULT_BACKEND", "sqlite:a.db")]).unwrap();
    }
}
