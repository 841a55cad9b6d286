//! Benchmarks our transports against the raw clients and other Rust libraries, on the same servers, and at growing
//! sizes.
//!
//! `cargo run --release -- --broker nats --rounds 3` compares, `cargo run --release -- growth` measures the growth;
//! README.md explains the rows.

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

use contestant::Durability;
use plan::{Broker, Generation, Row};

/// Measures our transports against raw clients and other libraries.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The brokers; all by default.
    #[arg(long, value_enum)]
    broker: Vec<Broker>,
    /// How often each contestant runs each row.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The rows; all by default.
    #[arg(long, value_enum)]
    row: Vec<Row>,
    /// Bytes of a message's body.
    #[arg(long, value_delimiter = ',', default_value = "256,4096")]
    size: Vec<usize>,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The guarantee of a confirmed publish.
    #[arg(long, value_enum, default_value = "page-cache")]
    durability: Durability,
    /// The system's servers, or the newer ones of `ops/dev/install --new`.
    #[arg(long, value_enum, default_value = "old")]
    generation: Generation,
    /// A factor for the usual number of messages.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Threads of each contestant's runtime; 0 means the current thread only.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prints every run and the summary as JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Print no line per run on standard error.
    #[arg(long)]
    quiet: bool,
    /// The task of a child of this program.
    #[arg(long, hide = true)]
    child: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures how the cost of our transports grows with the amount of work.
    Growth(growth::GrowthArgs),
}

impl Args {
    fn rows(&self) -> Vec<Row> {
        if self.row.is_empty() { Row::ALL.to_vec() } else { self.row.clone() }
    }

    fn brokers(&self) -> Vec<Broker> {
        if self.broker.is_empty() { Broker::ALL.to_vec() } else { self.broker.clone() }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Command::Growth(growth)) = args.command {
        return growth::run(&growth);
    }
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
