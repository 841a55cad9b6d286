//! `call`, `result` and `cancel`.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::output::Output;
use crate::{
    Error, Result, TaskClient, span,
    store::{NewTask, State, TaskRecord, TaskStore},
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
    /// To this queue
    #[arg(long, default_value = "default", value_name = "QUEUE")]
    queue: String,
    /// Higher runs sooner
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    priority: i32,
    /// How many failures are retried
    #[arg(long, default_value_t = 3, value_name = "N")]
    max_retries: u32,
    /// Only if no unfinished task of this name holds the same key
    #[arg(long, value_name = "KEY")]
    unique: Option<String>,
}

impl CallArgs {
    pub(super) async fn run(self, client: &TaskClient, output: Output) -> Result<()> {
        check_json(&self.args, "--args", "array", serde_json::Value::is_array)?;
        if let Some(kwargs) = &self.kwargs {
            check_json(kwargs, "--kwargs", "object", serde_json::Value::is_object)?;
        }
        let after = |text: &Option<String>| text.as_deref().map(time_from_now).transpose();
        let mut task = NewTask::named(self.name, self.args);
        task.kwargs = self.kwargs;
        task.due = self.eta.or(after(&self.countdown)?);
        task.expires = after(&self.expires)?;
        task.queue = self.queue;
        task.priority = self.priority;
        task.max_retries = self.max_retries;
        task.unique = self.unique;
        let sent = client.send(vec![task]).await?;
        let answer = json!({ "id": sent[0].id(), "duplicate": sent[0].is_duplicate() });
        output.show(&answer, |_| sent[0].id().to_string());
        Ok(())
    }
}

/// Refuses what is no JSON of the right shape before it is stored.
pub(super) fn check_json(
    text: &str,
    option: &str,
    shape: &str,
    fits: fn(&serde_json::Value) -> bool,
) -> Result<()> {
    match serde_json::from_str(text) {
        Ok(value) if fits(&value) => Ok(()),
        Ok(_) => Err(Error::invalid(format!("{option} takes a json {shape}, not `{text}`"))),
        Err(error) => Err(Error::invalid(format!("{option} takes a json {shape}, not `{text}`")).with(error)),
    }
}

fn time_from_now(text: &str) -> Result<Timestamp> {
    // Plain numbers are seconds, as in Celery.
    let text = if text.parse::<u64>().is_ok() { format!("{text}s") } else { text.to_owned() };
    let wait = span::parse(&text)
        .ok_or_else(|| Error::invalid(format!("`{text}` is no length of time such as `30s` or `2h 30m`")))?;
    Ok(Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX))
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
                let wait = span::parse(text)
                    .ok_or_else(|| Error::invalid(format!("`{text}` is no length of time")))?;
                task.wait(wait).await?
            }
        };
        let answer = json!({
            "id": record.id,
            "task": record.name,
            "state": record.state,
            "result": record.result,
            "error": record.error,
        });
        output.show(&answer, |_| told(&record));
        Ok(())
    }
}

fn told(record: &TaskRecord) -> String {
    match (record.state, &record.result, &record.error) {
        (State::Succeeded, Some(result), _) => result.to_string(),
        (state, _, Some(error)) => format!("{state}: {error}"),
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
        for id in self.ids {
            answers.push((id, store.cancel(id).await?));
        }
        output.show(&answers, |answers| {
            let told = answers.iter().map(|(id, was)| match was {
                State::Running => format!("{id} is asked to stop"),
                State::Queued | State::Scheduled => format!("{id} is cancelled"),
                ended => format!("{id} had ended: {ended}"),
            });
            told.collect::<Vec<_>>().join("\n")
        });
        Ok(())
    }
}
