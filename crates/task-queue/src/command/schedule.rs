//! Implements the subcommand `schedule`: list, add, remove.

use clap::{Args, Subcommand};
use serde_json::json;
use settings::duration;
use terminal::plain;

use super::{
    call::{OptionArgs, length},
    output::{Output, brief, relative},
};
use crate::{
    Error, ErrorKind, Missed, Result, Schedule, Timing,
    store::{ScheduleRecord, TaskStore},
};

/// The subcommands of `schedule`.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// List schedules with their last and next times
    Ls,
    /// Add a schedule, or replace the one of the same name
    Add(Box<AddArgs>),
    /// Remove a schedule
    Rm {
        /// Its name
        name: String,
    },
}

/// Options of `schedule add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The schedule's name
    name: String,
    /// The task's registered name
    #[arg(long, value_name = "NAME")]
    task: String,
    /// A cron expression of 5 fields, or 6 with seconds first
    #[arg(long, value_name = "EXPRESSION", required_unless_present = "every", conflicts_with = "every")]
    cron: Option<String>,
    /// An interval, such as 30s
    #[arg(long, value_name = "TIME")]
    every: Option<String>,
    /// The time zone of the cron fields, such as Europe/Berlin
    #[arg(long, default_value = "UTC", value_name = "ZONE")]
    tz: String,
    /// Policy for times at which no scheduler was running: once, skip or all
    #[arg(long, default_value = "once", value_name = "POLICY")]
    missed: Missed,
    /// Positional arguments, a JSON array
    #[arg(short = 'a', long, default_value = "[]", value_name = "JSON")]
    args: String,
    /// Arguments by name, a JSON object
    #[arg(short = 'k', long, value_name = "JSON")]
    kwargs: Option<String>,
    #[command(flatten)]
    options: OptionArgs,
    /// A run expires if it has not started after this time
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Skip a run while an unfinished task of this name holds the same key
    #[arg(long, value_name = "KEY")]
    unique: Option<String>,
}

impl ScheduleCommand {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output) -> Result<()> {
        match self {
            Self::Ls => {
                let found = store.schedules().await?;
                output.show(&found, |found| list(output, found))?;
            }
            Self::Add(args) => {
                let record = args.record(store).await?;
                store.put_schedule(record.clone()).await?;
                output.show(&record, |record| {
                    let next = record
                        .next
                        .map_or_else(|| "never".to_owned(), |at| format!("{at}, {}", relative(at)));
                    format!("schedule {} fires next at {next}", plain(&record.name))
                })?;
            }
            Self::Rm { name } => {
                if !store.remove_schedule(&name).await? {
                    return Err(Error::new(ErrorKind::NotFound, format!("there is no schedule `{name}`")));
                }
                output
                    .show(&json!({ "removed": name }), |_| format!("schedule {} is removed", plain(&name)))?;
            }
        }
        Ok(())
    }
}

impl AddArgs {
    async fn record(self, store: &dyn TaskStore) -> Result<ScheduleRecord> {
        let timing = match (&self.cron, &self.every) {
            (Some(cron), _) => Timing::cron(cron)?,
            (None, Some(every)) => {
                let interval = duration::parse(every).ok_or_else(|| {
                    Error::invalid(format!("`--every {every}` is not a duration such as `30s`"))
                })?;
                Timing::every(interval)?
            }
            (None, None) => return Err(Error::invalid("a schedule needs --cron or --every")),
        };
        let (mut task, own) =
            self.options.task(store, &self.task, &self.args, self.kwargs.as_deref()).await?;
        task.expires = None;
        task.unique = self.unique.or(task.unique);
        let mut schedule = Schedule::new(self.name, timing).zone(&self.tz)?.missed(self.missed).task(task)?;
        if let Some(within) = self.expires.as_deref().map(length).transpose()?.or(own) {
            schedule = schedule.expires(within);
        }
        let record = schedule.into_record();
        if record.next.is_none() {
            return Err(Error::invalid(format!("schedule `{}` would never fire", record.name)));
        }
        Ok(record)
    }
}

fn list(output: Output, found: &[ScheduleRecord]) -> String {
    let row = |schedule: &ScheduleRecord| {
        let time = |at: Option<jiff::Timestamp>| at.map_or_else(|| "never".to_owned(), relative);
        vec![
            schedule.name.clone(),
            schedule.timing.clone(),
            schedule.tz.clone(),
            schedule.task.clone(),
            schedule.queue.clone(),
            brief(schedule.args.as_str(), 40),
            time(schedule.last),
            time(schedule.next),
            schedule.fired.to_string(),
        ]
    };
    let head = ["NAME", "WHEN", "ZONE", "TASK", "QUEUE", "ARGS", "LAST", "NEXT", "FIRED"];
    output.table(&head, found.iter().map(row).collect(), "no schedules")
}
