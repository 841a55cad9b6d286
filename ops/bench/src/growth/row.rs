//! Defines the rows of the command `growth` and the transports on which they run.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::plan::Broker;

/// A transport of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    Memory,
    Sqlite,
    Nats,
    Redis,
    Rabbitmq,
}

impl Bus {
    pub const ALL: [Self; 5] = [Self::Memory, Self::Sqlite, Self::Nats, Self::Redis, Self::Rabbitmq];

    /// Returns the broker behind the transport, if there is one.
    pub fn broker(self) -> Option<Broker> {
        match self {
            Self::Memory | Self::Sqlite => None,
            Self::Nats => Some(Broker::Nats),
            Self::Redis => Some(Broker::Redis),
            Self::Rabbitmq => Some(Broker::Rabbitmq),
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Sqlite => f.write_str("sqlite"),
            Self::Nats | Self::Redis | Self::Rabbitmq => self.broker().map_or(Ok(()), |broker| broker.fmt(f)),
        }
    }
}

/// One row: a measurement and the amount that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// Messages that wait for one group.
    Backlog,
    /// Groups on one topic, busy and idle.
    Groups,
    /// Topics under one group with the pattern `>`, busy and idle.
    Topics,
    /// Keys of a keyed group, with a backlog of `--messages`.
    Keys,
    /// Messages of one key that wait for a keyed group.
    OneKey,
    /// Processes on one SQLite file, each of which publishes and consumes.
    Processes,
}

impl Row {
    pub const ALL: [Self; 6] =
        [Self::Backlog, Self::Groups, Self::Topics, Self::Keys, Self::OneKey, Self::Processes];

    /// Returns the name of the amount that grows.
    pub fn size(self) -> &'static str {
        match self {
            Self::Backlog => "messages waiting",
            Self::Groups => "groups on a topic",
            Self::Topics => "topics under `>`",
            Self::Keys => "keys of a keyed group",
            Self::OneKey => "messages waiting of one key",
            Self::Processes => "processes on one file",
        }
    }

    /// Returns whether the row exists for `bus`.
    pub fn runs_on(self, bus: Bus) -> bool {
        self != Self::Processes || bus == Bus::Sqlite
    }
}
