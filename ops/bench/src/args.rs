//! Defines the options of the comparison with raw clients and other libraries.

use crate::contestant::Durability;
use crate::plan::{Broker, Generation, Row};

/// The options of the comparison.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The brokers; all by default.
    #[arg(long, value_enum)]
    pub broker: Vec<Broker>,
    /// How often each contestant runs each row.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// The rows; all by default.
    #[arg(long, value_enum)]
    pub row: Vec<Row>,
    /// Bytes of a message's body.
    #[arg(long, value_delimiter = ',', default_value = "256,4096")]
    pub size: Vec<usize>,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// The guarantee of a confirmed publish.
    #[arg(long, value_enum, default_value = "page-cache")]
    pub durability: Durability,
    /// The system's servers, or the newer ones of `ops/dev/install --new`.
    #[arg(long, value_enum, default_value = "old")]
    pub generation: Generation,
    /// A factor for the usual number of messages.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Threads of each contestant's runtime; 0 means the current thread only.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Prints every run and the summary as JSON instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Print no line per run on standard error.
    #[arg(long)]
    pub quiet: bool,
    /// The task of a child of this program.
    #[arg(long, hide = true)]
    pub child: Option<String>,
}

impl Args {
    /// Returns the chosen rows.
    pub fn rows(&self) -> Vec<Row> {
        if self.row.is_empty() { Row::ALL.to_vec() } else { self.row.clone() }
    }

    /// Returns the chosen brokers.
    pub fn brokers(&self) -> Vec<Broker> {
        if self.broker.is_empty() { Broker::ALL.to_vec() } else { self.broker.clone() }
    }
}
