//! A service at work: its health, its counts, and how it stops.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::health::{self, Pulse};
use super::source::Events;
use super::worker::{Counts, Stats};
use crate::bus::Bus;
use crate::error::{Error, ErrorKind, Result};
use crate::subscription::Health;

/// A started service. Dropping it stops the workers at once; their unsettled messages go back to their groups.
#[must_use = "dropping it stops the service"]
pub struct Running {
    name: SmolStr,
    bus: Bus,
    bound: Duration,
    handlers: Vec<Handler>,
    /// Answers health questions until the end, so that they see the draining too.
    answering: Option<AbortOnDropHandle<()>>,
}

struct Handler {
    group: SmolStr,
    stats: Arc<Stats>,
    source: Source,
    workers: JoinSet<()>,
}

/// Where a handler's work comes from, and how it is stopped.
pub(super) enum Source {
    Events(Events),
    Requests(CancellationToken),
}

impl Source {
    fn stop(&self) {
        match self {
            Self::Events(events) => events.stop(),
            Self::Requests(draining) => draining.cancel(),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Waiting layers are told even when the service is dropped without draining.
        if let Self::Requests(draining) = self {
            draining.cancel();
        }
    }
}

impl Handler {
    fn pulse(&self) -> Pulse {
        match &self.source {
            Source::Events(events) => Pulse::Events(events.pulse()),
            Source::Requests(draining) => Pulse::Requests(draining.clone()),
        }
    }
}

impl Running {
    pub(super) fn new(name: SmolStr, bus: Bus, bound: Duration) -> Self {
        Self { name, bus, bound, handlers: Vec::new(), answering: None }
    }

    pub(super) fn add(&mut self, group: SmolStr, stats: Arc<Stats>, source: Source, workers: JoinSet<()>) {
        self.handlers.push(Handler { group, stats, source, workers });
    }

    /// Begins to answer health questions.
    pub(super) async fn answer_health(&mut self) -> Result<()> {
        let handlers = self.handlers.iter().map(|handler| (handler.group.clone(), handler.pulse())).collect();
        self.answering = health::answer(&self.bus, &self.name, handlers).await?;
        Ok(())
    }

    /// The bus as this service uses it.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Counts since the start, of each group and each request subject.
    pub fn counts(&self) -> BTreeMap<SmolStr, Counts> {
        self.handlers.iter().map(|handler| (handler.group.clone(), handler.stats.counts())).collect()
    }

    /// Counters that outlive this value, by group.
    pub fn stats(&self) -> BTreeMap<SmolStr, Arc<Stats>> {
        self.handlers.iter().map(|handler| (handler.group.clone(), handler.stats.clone())).collect()
    }

    /// Each handler's source of work; all `Live` means ready.
    pub fn health(&self) -> BTreeMap<SmolStr, Health> {
        self.handlers.iter().map(|handler| (handler.group.clone(), handler.pulse().health())).collect()
    }

    /// Whether every subscription makes progress.
    pub fn is_ready(&self) -> bool {
        self.health().values().all(|health| *health == Health::Live)
    }

    /// Stops fetching, hands back what has not started, and waits within the bound for what runs.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] naming the groups whose work was abandoned; it will be delivered again.
    pub async fn drain(mut self) -> Result<()> {
        for handler in &self.handlers {
            handler.source.stop();
        }
        let deadline = tokio::time::Instant::now() + self.bound;
        let mut abandoned = Vec::new();
        for handler in &mut self.handlers {
            let finished = tokio::time::timeout_at(deadline, async {
                while handler.workers.join_next().await.is_some() {}
            });
            if finished.await.is_err() {
                abandoned.push(format!("{} ({})", handler.group, handler.workers.len()));
                handler.workers.shutdown().await;
            }
        }
        if abandoned.is_empty() {
            tracing::info!(service = %self.name, "service drained");
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "work was abandoned and will be delivered again")
            .during("drain")
            .with("service", &self.name)
            .with("groups", abandoned.join(", ")))
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("name", &self.name)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
