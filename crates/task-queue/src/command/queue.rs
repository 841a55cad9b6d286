//! Implements the subcommands `purge`, `pause` and `resume`.

use clap::Args;
use serde_json::json;
use terminal::plain;

use super::output::Output;
use crate::{Error, Result, store::TaskStore};

/// Options of `purge`.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    /// Confirm that the tasks are to be deleted
    #[arg(short = 'f', long)]
    force: bool,
    /// Only these queues, separated by commas (else all)
    #[arg(short = 'Q', long, value_delimiter = ',', value_name = "QUEUES")]
    queues: Vec<String>,
}

impl PurgeArgs {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output) -> Result<()> {
        if !self.force {
            let what = if self.queues.is_empty() { "all queues".to_owned() } else { self.queues.join(", ") };
            return Err(Error::invalid(format!(
                "this deletes every waiting task of {what}: confirm with --force"
            )));
        }
        let purged = store.purge(&self.queues).await?;
        output.show(&json!({ "purged": purged }), |_| format!("{purged} waiting tasks deleted"))?;
        Ok(())
    }
}

/// The queue of `pause` and `resume`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    /// The queue's name
    queue: String,
}

impl QueueArgs {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output, paused: bool) -> Result<()> {
        store.pause(&self.queue, paused).await?;
        let now = if paused { "paused" } else { "resumed" };
        output.show(&json!({ "queue": self.queue, "paused": paused }), |_| {
            format!("queue {} is {now}", plain(&self.queue))
        })?;
        Ok(())
    }
}
