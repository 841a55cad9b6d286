//! Defines the options of the command `growth`.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::row::{Bus, Row};
use crate::contestant::Durability;
use crate::plan::Generation;

/// The options of `growth`.
#[derive(Debug, Args)]
pub struct GrowthArgs {
    /// The transports; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    bus: Vec<Bus>,
    /// The rows; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    row: Vec<Row>,
    #[command(flatten)]
    pub sizes: Sizes,
    #[command(flatten)]
    pub load: Load,
    /// How often each size runs; the tables show medians.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// The guarantee of a confirmed publish.
    #[arg(long, value_enum, default_value = "page-cache")]
    pub durability: Durability,
    /// The system's servers, or the newer ones of `ops/dev/install --new`.
    #[arg(long, value_enum, default_value = "old")]
    pub generation: Generation,
    /// Prints every run and the summary as JSON instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Print no line per run on standard error.
    #[arg(long)]
    pub quiet: bool,
    /// The task of a child that measures one size.
    #[arg(long, hide = true)]
    pub point: Option<String>,
    /// The task of a child that is one of several processes on one file.
    #[arg(long, hide = true)]
    pub member: Option<String>,
}

/// The sizes of each row.
#[derive(Debug, Args)]
pub struct Sizes {
    /// Messages that wait for a group; add 1000000 for a long run.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    backlog: Vec<usize>,
    /// Groups on one topic.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    groups: Vec<usize>,
    /// Topics under one group with the pattern `>`.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    topics: Vec<usize>,
    /// Keys of a keyed group.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    keys: Vec<usize>,
    /// Messages of one key that wait for a keyed group.
    #[arg(long, value_delimiter = ',', default_value = "10000,30000,100000")]
    one_key: Vec<usize>,
    /// Processes on one SQLite file.
    #[arg(long, value_delimiter = ',', default_value = "2,8,32")]
    processes: Vec<usize>,
}

impl Sizes {
    /// Returns the sizes of `row`.
    pub fn of(&self, row: Row) -> &[usize] {
        match row {
            Row::Backlog => &self.backlog,
            Row::Groups => &self.groups,
            Row::Topics => &self.topics,
            Row::Keys => &self.keys,
            Row::OneKey => &self.one_key,
            Row::Processes => &self.processes,
        }
    }
}

/// The amount of work at each size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, Args)]
pub struct Load {
    /// Messages that are handled at each size. `groups` gives a tenth of it to each group, and `one-key` handles half of
    /// it.
    #[arg(long, default_value_t = 20_000)]
    pub messages: usize,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 256)]
    pub body: usize,
    /// Seconds for which idle groups are observed.
    #[arg(long, default_value_t = 5.0)]
    pub idle: f64,
    /// Seconds for which the processes of the row `processes` publish.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

impl GrowthArgs {
    /// Returns the chosen transports.
    pub fn buses(&self) -> Vec<Bus> {
        if self.bus.is_empty() { Bus::ALL.to_vec() } else { self.bus.clone() }
    }

    /// Returns the chosen rows.
    pub fn rows(&self) -> Vec<Row> {
        if self.row.is_empty() { Row::ALL.to_vec() } else { self.row.clone() }
    }
}
