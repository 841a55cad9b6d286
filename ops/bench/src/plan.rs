//! Defines the measurements: brokers and their generations, rows, sizes, and the number of messages of each run.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Broker {
    Nats,
    Redis,
    Rabbitmq,
}

impl Broker {
    pub const ALL: [Self; 3] = [Self::Nats, Self::Redis, Self::Rabbitmq];
}

/// The generation of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generation {
    /// The system's servers.
    Old,
    /// The newer ones of `ops/dev/install --new`.
    New,
}

impl From<Generation> for test_servers::Generation {
    fn from(generation: Generation) -> Self {
        match generation {
            Generation::Old => Self::Old,
            Generation::New => Self::New,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// Publish, each confirmed before the next.
    #[value(name = "publish-1")]
    #[serde(rename = "publish-1")]
    Publish1,
    /// Publish with 256 unconfirmed.
    #[value(name = "publish-256")]
    #[serde(rename = "publish-256")]
    Publish256,
    /// Consume a backlog, each acknowledged before the next.
    #[value(name = "consume-1")]
    #[serde(rename = "consume-1")]
    Consume1,
    /// Consume a backlog, 64 at a time.
    #[value(name = "consume-64")]
    #[serde(rename = "consume-64")]
    Consume64,
    /// Publish with 256 unconfirmed and consume with 64 at a time, in one process.
    Both,
    /// Publish one message to an idle server and wait until it arrives at the handler.
    Latency,
    /// Not a row of the tables: fills the backlog of another run.
    #[value(skip)]
    Fill,
}

impl Row {
    pub const ALL: [Self; 6] =
        [Self::Publish1, Self::Publish256, Self::Consume1, Self::Consume64, Self::Both, Self::Latency];

    /// Returns the row's title in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Publish1 => "publish, confirmed one at a time",
            Self::Publish256 => "publish, 256 unconfirmed",
            Self::Consume1 => "consume, one at a time",
            Self::Consume64 => "consume, 64 at once",
            Self::Both => "both at once (256 / 64)",
            Self::Latency => "idle publish to handler, p50 / p99",
            Self::Fill => "fill",
        }
    }

    pub fn publishes(self) -> bool {
        !matches!(self, Self::Consume1 | Self::Consume64)
    }

    pub fn consumes(self) -> bool {
        !matches!(self, Self::Publish1 | Self::Publish256 | Self::Fill)
    }

    /// Returns whether another process must fill the backlog first.
    pub fn needs_backlog(self) -> bool {
        matches!(self, Self::Consume1 | Self::Consume64)
    }
}

/// Returns the number of messages of a run that takes the raw client about three seconds on two cores.
pub fn messages(broker: Broker, row: Row, size: usize) -> usize {
    let small = size < 2048;
    match (broker, row) {
        (Broker::Nats | Broker::Redis, Row::Latency) => 1000,
        (Broker::Rabbitmq, Row::Latency) => 500,
        (Broker::Nats, Row::Publish1) => 30_000,
        (Broker::Nats, Row::Both) => {
            if small {
                200_000
            } else {
                80_000
            }
        }
        (Broker::Nats, _) => {
            if small {
                400_000
            } else {
                200_000
            }
        }
        (Broker::Redis, Row::Publish1) => 50_000,
        (Broker::Redis, Row::Consume1) => {
            if small {
                80_000
            } else {
                60_000
            }
        }
        (Broker::Redis, _) => {
            if small {
                400_000
            } else {
                150_000
            }
        }
        (Broker::Rabbitmq, Row::Publish1) => 4_000,
        (Broker::Rabbitmq, _) => {
            if small {
                60_000
            } else {
                40_000
            }
        }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Rabbitmq => "rabbitmq",
        })
    }
}
