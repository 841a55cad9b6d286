//! Defines the options of a SQLite store, with their defaults and limits.

use std::{path::PathBuf, time::Duration};

use crate::{
    Error, Result,
    bounds::{LONGEST, ttl_ms, within},
};

/// The failures that a confirmed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// A power cut: every commit is synced to the disk (`synchronous=FULL`).
    #[default]
    Fsync,
    /// A crash of the process but not of the machine (`synchronous=NORMAL`).
    PageCache,
}

/// The options of a store; the defaults are those of a bare `sqlite:PATH`.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database file. It is created if missing; its directory is not.
    pub path: PathBuf,
    /// The failures that a confirmed write survives; default [`Durability::Fsync`].
    pub durability: Durability,
    /// The lease: a worker without heartbeats keeps its tasks for this time; default 8 s, from 100 ms to a day.
    /// Heartbeats are four times as frequent.
    pub lease: Duration,
    /// The time that a write waits for another process's write; default 5 s, a day at most.
    pub busy_timeout: Duration,
    /// The time that dead tasks are kept for a replay before they are deleted; default 30 days, a hundred years at
    /// most.
    pub dead_ttl: Duration,
    /// The time that a due task waits for a worker that has registered its kind, before it becomes dead; default 7
    /// days, from 1 ms to a hundred years. It is measured from the later of two times: the task's due time, and the
    /// last time that such a worker was seen.
    pub patience: Duration,
    /// The maximum size of the arguments and of the headers of one task, in bytes; default 1 MiB, 256 MiB at most.
    pub max_args: usize,
    /// The maximum size of a result that is kept, in bytes; default 1 MiB, 256 MiB at most.
    pub max_result: usize,
}

impl SqliteOptions {
    /// Creates options with the defaults for a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            durability: Durability::Fsync,
            lease: Duration::from_secs(8),
            busy_timeout: Duration::from_secs(5),
            dead_ttl: Duration::from_secs(30 * 86_400),
            patience: Duration::from_secs(7 * 86_400),
            max_args: 1 << 20,
            max_result: 1 << 20,
        }
    }

    /// Refuses options outside the limits that the fields document.
    pub(in crate::store) fn check(&self) -> Result<()> {
        const DAY: Duration = Duration::from_secs(86_400);
        const ROOM: usize = 256 << 20;
        let moment = Duration::from_millis(1);
        within("a lease", self.lease, Duration::from_millis(100), DAY)?;
        within("a busy timeout", self.busy_timeout, Duration::ZERO, DAY)?;
        within("a time to live of dead tasks", self.dead_ttl, Duration::ZERO, LONGEST)?;
        within("a patience", self.patience, moment, LONGEST)?;
        for (what, size) in [("arguments", self.max_args), ("result", self.max_result)] {
            if size > ROOM {
                return Err(Error::invalid(format!(
                    "{what} of up to {size} bytes: a store accepts {ROOM} at most"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn dead_ttl_ms(&self) -> i64 {
        ttl_ms(self.dead_ttl)
    }

    pub(super) fn patience_ms(&self) -> i64 {
        ttl_ms(self.patience)
    }

    /// The lease in whole milliseconds.
    pub(super) fn lease_ms(&self) -> i64 {
        self.lease.as_millis() as i64
    }
}
