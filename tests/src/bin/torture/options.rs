//! The command line, for users and for the child processes.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Runs publishers and consumers on a real server while faults of every kind happen, and checks the result.
#[derive(Debug, Parser)]
#[command(name = "torture")]
pub(crate) struct Options {
    /// The bus to test.
    #[arg(long, value_enum, default_value = "sqlite")]
    pub(crate) on: On,
    /// Use the newer generation of the server.
    #[arg(long)]
    pub(crate) new: bool,
    /// Make the server sync before it confirms (NATS, Redis).
    #[arg(long)]
    pub(crate) fsync: bool,
    /// The number of faults.
    #[arg(long, default_value_t = 20)]
    pub(crate) faults: usize,
    /// End after this time even if faults are left: 90s, 10m.
    #[arg(long = "for", value_parser = duration)]
    pub(crate) time: Option<Duration>,
    /// The seed that determines the faults and their moments.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Run without faults at half speed for this time.
    #[arg(long, value_parser = duration)]
    pub(crate) soak: Option<Duration>,
    /// Only these faults, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// The number of keys of each of the two publishers, one message at a time each.
    #[arg(long, default_value_t = 16)]
    pub(crate) lanes: usize,
    /// The pause between two messages of one key, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pub(crate) pause: u64,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// The bus to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    Sqlite,
    Nats,
    Redis,
    Rabbitmq,
}

/// The role of a child process.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    Publish(Publish),
    Work(Work),
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) ledger: PathBuf,
    /// The number of the publisher, from 0.
    #[arg(long)]
    pub(crate) number: usize,
    #[arg(long)]
    pub(crate) lanes: usize,
    /// The pause between two messages of one key, in milliseconds.
    #[arg(long)]
    pub(crate) pause: u64,
    #[arg(long)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Work {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) ledger: PathBuf,
    #[arg(long)]
    pub(crate) group: String,
    #[arg(long)]
    pub(crate) keyed: bool,
    #[arg(long)]
    pub(crate) concurrency: usize,
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a time such as 90s or 10m"))?;
    match &text[digits.len()..] {
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        unit => Err(format!("{unit:?} is not a unit: use s or m")),
    }
}
