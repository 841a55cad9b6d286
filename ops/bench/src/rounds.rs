//! Runs interleaved rounds: in each, every contestant runs once, in turn, so that other load on the machine
//! slows all of them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::child::{Outcome, Task};
use crate::contestants::{self, Entry};
use crate::plan::{Broker, Row, messages};
use crate::servers::Server;
use crate::spawn;

/// The maximum duration of a child.
const PATIENCE: Duration = Duration::from_secs(180);

/// One run and its result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub broker: Broker,
    pub row: Row,
    pub size: usize,
    pub round: usize,
    pub contestant: String,
    pub outcome: Option<Outcome>,
    /// The reason for a missing result.
    pub error: Option<String>,
}

/// Runs all rows that `args` selects for `broker`.
pub async fn rounds(args: &Args, broker: Broker) -> Result<Vec<Run>> {
    let server = Server::start(broker, args.generation.into(), args.durability).await?;
    let entries: Vec<&Entry> = contestants::of(broker)
        .iter()
        .filter(|entry| args.only.is_empty() || args.only.iter().any(|name| name == entry.name))
        .collect();
    let mut runs: Vec<Run> = Vec::new();
    for &size in &args.size {
        for &row in &args.rows() {
            for round in 0..args.rounds {
                for turn in 0..entries.len() {
                    // The first place rotates.
                    let entry = entries[(turn + round) % entries.len()];
                    let wanted = messages(broker, row, size) as f64 * entry.share * args.scale;
                    let mut run = Run {
                        broker,
                        row,
                        size,
                        round,
                        contestant: entry.name.to_owned(),
                        outcome: None,
                        error: None,
                    };
                    let name = format!("bench{}", runs.len());
                    match one(args, &server, &run, &name, (wanted as usize).max(64)).await {
                        Ok(outcome) => run.outcome = Some(outcome),
                        Err(error) => run.error = Some(format!("{error:#}")),
                    }
                    server.clear(&name).await?;
                    if !args.quiet {
                        eprintln!("{}", crate::report::line(&run));
                    }
                    runs.push(run);
                }
            }
        }
    }
    Ok(runs)
}

async fn one(args: &Args, server: &Server, run: &Run, name: &str, messages: usize) -> Result<Outcome> {
    let mut task = Task {
        contestant: run.contestant.clone(),
        broker: run.broker,
        row: run.row,
        size: run.size,
        messages,
        durability: args.durability,
        url: server.url(name).await?,
        name: name.to_owned(),
        server: server.process()?,
        threads: args.threads,
    };
    if run.row.needs_backlog() {
        task.row = Row::Fill;
        child(&task).await.context("filling the backlog")?;
        task.row = run.row;
    }
    child(&task).await
}

/// Runs `task` in a separate process.
async fn child(task: &Task) -> Result<Outcome> {
    spawn::json(&["--child", &serde_json::to_string(task)?], PATIENCE).await
}
