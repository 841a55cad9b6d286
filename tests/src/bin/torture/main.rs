//! Torture: publishers and consumers run on a real server while faults of every kind happen, and a checker
//! verifies the result.
//!
//! ```text
//! torture --on nats --faults 200 --seed 1     # 200 faults drawn by the seed, then the check
//! torture --on redis --new --fsync --for 10m  # as many faults as fit into ten minutes
//! torture --on rabbitmq --soak 10m            # no faults, half speed: memory, descriptors, server-side counts
//! torture --on sqlite --faults 20             # embedded: processes that are killed or stand still
//! ```
//!
//! Publishers and workers are child processes of this program. Each records its facts in a file that is only
//! appended to: a publish after it was confirmed, a handled step while it is handled. The records survive the
//! process. At the end the files, the groups and the dead letters must agree: see [`checker`].
//!
//! The exit code is 0 only when every promise was kept.

mod broker;
mod checker;
mod faults;
mod ledger;
mod options;
mod publisher;
mod run;
mod soak;
mod team;
mod watch;
mod work;
mod worker;

use clap::Parser;
use options::{Options, Role};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let level = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(level).with_ansi(false).with_writer(std::io::stderr).init();
    let result = match &options.role {
        Some(Role::Publish(role)) => publisher::run(role).await,
        Some(Role::Work(role)) => worker::run(role).await,
        None if options.soak.is_some() => soak::run(&options).await,
        None => run::run(&options).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("torture: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The result of this program's functions; an error is printed for the user and ends the program.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
