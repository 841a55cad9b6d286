//! Implements the subcommands `call`, `result` and `cancel`.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use settings::duration;
use terminal::{note, plain};
use uuid::Uuid;

use super::output::Output;
use crate::{
    Error, Result, TaskClient,
    store::{Json, NewTask, State, TaskRecord, TaskStore},
    task::by_name,
};

/// Options of `call`.
#[derive(Debug, Args)]
pub struct CallArgs {
    /// The task's registered name
    name: String,
    /// Positional arguments, a JSON array
    #[arg(short = 'a', long, default_value = "[]", value_name = "JSON")]
    args: String,
    /// Arguments by name, a JSON object
    #[arg(short = 'k', long, value_name = "JSON")]
    kwargs: Option<String>,
    /// Run no sooner than after this time, such as 30s (or seconds)
    #[arg(long, value_name = "TIME", conflicts_with = "eta")]
    countdown: Option<String>,
    /// Run no sooner than at this time, such as 2026-12-24T18:00:00Z
    #[arg(long, value_name = "TIME")]
    eta: Option<Timestamp>,
    /// Drop it if it has not started after this time
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    options: OptionArgs,
    /// Enqueue only if no unfinished task of this name holds the same key
    #[arg(long, value_name = "KEY")]
    unique: Option<String>,
}

/// Options of a task; the defaults are those that its worker has registered.
#[derive(Debug, Args)]
pub(super) struct OptionArgs {
    /// Send the task to this queue (else the task's own, or `default`)
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// Higher runs sooner (else the task's own, or 0)
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    priority: Option<i32>,
    /// Maximum number of failures that are retried (else the task's own, or 3)
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
}

impl OptionArgs {
    /// Builds a task by name with the options that its worker has registered, unless the command line sets others,
    /// and returns the time after enqueue at which it expires. Prints a warning when no worker has registered the
    /// name.
    pub(super) async fn task(
        &self,
        store: &dyn TaskStore,
        name: &str,
        args: &str,
        kwargs: Option<&str>,
    ) -> Result<(NewTask, Option<Duration>)> {
        check_json(args, "--args", "array", serde_json::Value::is_array)?;
        if let Some(kwargs) = kwargs {
            check_json(kwargs, "--kwargs", "object", serde_json::Value::is_object)?;
            by_name(kwargs)?;
        }
        let kind = store.kinds().await?.into_iter().find(|kind| kind.name == name);
        let mut task = match &kind {
            Some(kind) => kind.task(args, kwargs),
            None => {
                let mut task = NewTask::named(name, args);
                task.kwargs = kwargs.map(str::to_owned);
                task
            }
        };
        if let Some(queue) = &self.queue {
            task.queue.clone_from(queue);
        }
        task.priority = self.priority.unwrap_or(task.priority);
        task.max_retries = self.max_retries.unwrap_or(task.max_retries);
        if kind.is_none()
            && !store.workers().await?.iter().any(|worker| worker.info.tasks.iter().any(|task| task == name))
        {
            note(&plain(&format!(
                "warning: no worker has registered `{name}`: its tasks wait in queue `{}` for such a worker, each for \
                 {} after it falls due, and then are dead; `inspect registered` lists what workers run",
                task.queue,
                duration::in_days(store.patience())
            )));
        }
        Ok((task, kind.and_then(|kind| kind.expires)))
    }
}

impl CallArgs {
    pub(super) async fn run(self, client: &TaskClient, output: Output) -> Result<()> {
        let store = client.store();
        let (mut task, _) =
            self.options.task(&**store, &self.name, &self.args, self.kwargs.as_deref()).await?;
        let after = |text: &Option<String>| text.as_deref().map(time_from_now).transpose();
        task.due = self.eta.or(after(&self.countdown)?);
        task.expires = after(&self.expires)?.or(task.expires);
        task.unique = self.unique.or(task.unique);
        let sent = client.send(vec![task]).await?;
        let answer = json!({ "id": sent[0].id(), "duplicate": sent[0].is_duplicate() });
        output.show(&answer, |_| sent[0].id().to_string())?;
        Ok(())
    }
}

/// Refuses text that is not JSON of the right shape, before it is stored.
pub(super) fn check_json(
    text: &str,
    option: &str,
    shape: &str,
    fits: fn(&serde_json::Value) -> bool,
) -> Result<()> {
    match serde_json::from_str(text) {
        Ok(value) if fits(&value) => Ok(()),
        Ok(_) => Err(Error::invalid(format!("{option} takes a json {shape}, not `{text}`"))),
        Err(error) => {
            Err(Error::invalid(format!("{option} takes a json {shape}, not `{text}`")).because(error))
        }
    }
}

fn time_from_now(text: &str) -> Result<Timestamp> {
    Ok(Timestamp::now().saturating_add(length(text)?).unwrap_or(Timestamp::MAX))
}

/// Parses a duration; plain numbers are seconds, as in Celery.
pub(super) fn length(text: &str) -> Result<Duration> {
    let text = if text.parse::<u64>().is_ok() { format!("{text}s") } else { text.to_owned() };
    duration::parse(&text)
        .ok_or_else(|| Error::invalid(format!("`{text}` is not a duration such as `30s` or `2h 30m`")))
}

/// Options of `result`.
#[derive(Debug, Args)]
pub struct ResultArgs {
    /// The task's id
    id: Uuid,
    /// Wait this long for it to end
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
}

impl ResultArgs {
    pub(super) async fn run(self, client: &TaskClient, output: Output) -> Result<()> {
        let task = client.result::<serde_json::Value>(self.id);
        let record = match self.timeout.as_deref() {
            None => task.record().await?,
            Some(text) => {
                let wait = duration::parse(text).ok_or_else(|| {
                    Error::invalid(format!("`{text}` is not a duration such as `30s` or `2h 30m`"))
                })?;
                task.wait(wait).await?
            }
        };
        let answer = Answer {
            id: record.id,
            task: &record.name,
            state: record.state,
            result: record.result.as_ref(),
            error: record.error.as_deref(),
        };
        output.show(&answer, |_| told(&record))?;
        Ok(())
    }
}

/// The outcome of a task.
#[derive(Serialize)]
struct Answer<'a> {
    id: Uuid,
    task: &'a str,
    state: State,
    result: Option<&'a Json>,
    error: Option<&'a str>,
}

fn told(record: &TaskRecord) -> String {
    match (record.state, &record.result, &record.error) {
        (State::Succeeded, Some(result), _) => plain(&result.to_string()),
        (state, _, Some(error)) => format!("{state}: {}", plain(error)),
        (state, ..) => state.to_string(),
    }
}

/// Options of `cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The tasks' ids
    #[arg(required = true)]
    ids: Vec<Uuid>,
}

impl CancelArgs {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output) -> Result<()> {
        let mut answers = Vec::new();
        let mut failed = Vec::new();
        for id in self.ids {
            match store.cancel(id).await {
                Ok(was) => answers.push((id, was)),
                Err(error) => failed.push((id, error)),
            }
        }
        output.show(&answers, |answers| {
            let told = answers.iter().map(|(id, was)| match was {
                State::Running => format!("{id} is running and will be stopped"),
                State::Queued | State::Scheduled => format!("{id} is cancelled"),
                ended => format!("{id} had already ended: {ended}"),
            });
            told.collect::<Vec<_>>().join("\n")
        })?;
        let Some((_, first)) = failed.first() else { return Ok(()) };
        let ids: Vec<String> = failed.iter().map(|(id, _)| id.to_string()).collect();
        let text = format!("not cancelled: {}; the others are cancelled", ids.join(", "));
        Err(Error::new(
            first.kind(),
            if answers.is_empty() { format!("not cancelled: {}", ids.join(", ")) } else { text },
        )
        .because(first.clone()))
    }
}
