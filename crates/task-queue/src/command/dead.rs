//! Implements the subcommand `dead`: tasks that failed permanently.

use std::collections::HashSet;

use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::{inspect::tasks, output::Output};
use crate::{
    Error, ErrorKind, Result,
    store::{Filter, State, TaskStore},
};

/// The subcommands of `dead`.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List dead tasks, newest first
    Ls {
        /// Maximum number of tasks to list
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
    },
    /// Put dead tasks back in their queue with fresh retries
    Replay(Which),
    /// Delete dead tasks
    Drop(Which),
}

/// The tasks to change: some by id, or all.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The tasks' ids
    ids: Vec<Uuid>,
    /// All dead tasks
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Which {
    fn ids(&self) -> Result<&[Uuid]> {
        if self.ids.is_empty() && !self.all {
            return Err(Error::invalid("name the tasks' ids, or pass --all"));
        }
        Ok(&self.ids)
    }

    /// Fails when the store did not change all of the named tasks.
    fn all_done(&self, count: u64, why: &str) -> Result<()> {
        let named = self.ids.iter().collect::<HashSet<_>>().len() as u64;
        if count < named {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{} of {named} tasks were not changed: {why}", named - count),
            ));
        }
        Ok(())
    }
}

impl DeadCommand {
    pub(super) async fn run(self, store: &dyn TaskStore, output: Output) -> Result<()> {
        match self {
            Self::Ls { limit } => {
                let found =
                    store.list(Filter { state: Some(State::Dead), limit, ..Filter::default() }).await?;
                output.show(&found, |found| tasks(output, found, "no dead tasks"))?;
            }
            Self::Replay(which) => {
                let count = store.replay(which.ids()?).await?;
                output.show(&json!({ "replayed": count }), |_| format!("{count} dead tasks queued again"))?;
                which.all_done(count, "they are not dead, or an unfinished task holds their unique key")?;
            }
            Self::Drop(which) => {
                let count = store.drop_dead(which.ids()?).await?;
                output.show(&json!({ "dropped": count }), |_| format!("{count} dead tasks deleted"))?;
                which.all_done(count, "they are not dead")?;
            }
        }
        Ok(())
    }
}
