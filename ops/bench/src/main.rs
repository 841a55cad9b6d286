//! Benchmarks our transports against the raw clients and other Rust libraries, on the same servers, and at growing
//! sizes.
//!
//! `cargo run --release -- --broker nats --rounds 3` compares, `cargo run --release -- growth` measures the growth;
//! README.md explains the rows.

mod args;
mod child;
mod contestant;
mod contestants;
mod growth;
mod plan;
mod report;
mod rounds;
mod servers;
mod spawn;
mod usage;

use anyhow::Result;
use clap::{Parser, Subcommand};

use args::Args;

/// Measures our transports against raw clients and other libraries.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures how the cost of our transports grows with the amount of work.
    Growth(growth::GrowthArgs),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Growth(growth)) = cli.command {
        return growth::run(&growth);
    }
    let args = cli.compare;
    if let Some(task) = &args.child {
        let task: child::Task = serde_json::from_str(task)?;
        let mut runtime = match task.threads {
            0 => tokio::runtime::Builder::new_current_thread(),
            threads => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(threads);
                builder
            }
        };
        let runtime = runtime.enable_all().build()?;
        // In a spawned task, as services work: the thread that starts the runtime would have to be woken from
        // outside.
        let outcome = runtime.block_on(async { tokio::spawn(contestants::start(task)?).await? })?;
        println!("{}", serde_json::to_string(&outcome)?);
        // Background tasks of a client are not measured.
        runtime.shutdown_background();
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut runs = Vec::new();
    for broker in args.brokers() {
        runs.extend(runtime.block_on(rounds::rounds(&args, broker))?);
    }
    if args.json { report::json(&args, &runs) } else { report::tables(&args, &runs) }
}
