//! A service at work: its health, its counts, and how it stops.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::health::{self, Pulse};
use super::source::Events;
use super::worker::{Counts, Stats};
use crate::bounds;
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
    /// One for each source of work: why it cannot go on.
    keepers: JoinSet<Option<Error>>,
    /// It is being drained.
    stopping: CancellationToken,
    /// Answers health questions until the end, so that they see the draining too.
    answering: Option<AbortOnDropHandle<()>>,
}

struct Handler {
    group: SmolStr,
    stats: Arc<Stats>,
    source: StopHandle,
    workers: JoinSet<()>,
}

/// Where a handler's work comes from, and how it is stopped.
pub(super) enum StopHandle {
    Events(Events),
    Requests(CancellationToken),
}

impl StopHandle {
    fn stop(&self) {
        match self {
            Self::Events(events) => events.stop(),
            Self::Requests(draining) => draining.cancel(),
        }
    }
}

impl Drop for StopHandle {
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
            StopHandle::Events(events) => Pulse::Events(events.pulse()),
            StopHandle::Requests(draining) => Pulse::Requests(draining.clone()),
        }
    }
}

impl Running {
    pub(super) fn new(name: SmolStr, bus: Bus, bound: Duration) -> Self {
        Self {
            name,
            bus,
            bound,
            handlers: Vec::new(),
            keepers: JoinSet::new(),
            stopping: CancellationToken::new(),
            answering: None,
        }
    }

    pub(super) fn add(
        &mut self,
        group: SmolStr,
        stats: Arc<Stats>,
        source: StopHandle,
        workers: JoinSet<()>,
    ) {
        self.handlers.push(Handler { group, stats, source, workers });
    }

    /// Looks after the source of a handler of events.
    pub(super) fn keep(&mut self, keeper: impl Future<Output = Option<Error>> + Send + 'static) {
        self.keepers.spawn(keeper);
    }

    /// Looks whether a handler of requests goes on: its receiver ends with the transport's task or the bus.
    pub(super) fn watch(&mut self, subject: SmolStr, ended: CancellationToken) {
        let stopping = self.stopping.clone();
        self.keepers.spawn(async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => None,
                () = ended.cancelled() => {
                    let text = "no request arrives any more though nobody stopped it: the bus was closed";
                    Some(Error::new(ErrorKind::Closed, text).with("subject", subject))
                }
            }
        });
    }

    /// Resolves when a handler gets no more work though nobody stopped the service, with the reason: its group was
    /// deleted, the bus was closed, or a defect. [`Service::run_until`](super::Service::run_until) ends then.
    pub async fn failed(&mut self) -> Error {
        loop {
            match self.keepers.join_next().await {
                Some(Ok(Some(error))) => return error.during("run service").with("service", &self.name),
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
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
    /// [`ErrorKind::Timeout`] naming the groups whose work was abandoned, [`ErrorKind::Unavailable`] when what was done
    /// could not be settled; either will be delivered again.
    pub async fn drain(mut self) -> Result<()> {
        self.stopping.cancel();
        let unsettled = |handlers: &[Handler]| -> u64 {
            handlers.iter().map(|handler| handler.stats.counts().unsettled).sum()
        };
        let before = unsettled(&self.handlers);
        for handler in &self.handlers {
            handler.source.stop();
        }
        let deadline = bounds::from_now(self.bound);
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
        let lost = unsettled(&self.handlers) - before;
        if abandoned.is_empty() && lost > 0 {
            let text = "settlements were not confirmed; their messages are delivered again";
            return Err(Error::new(ErrorKind::Unavailable, text)
                .during("drain")
                .with("service", &self.name)
                .with("settlements", lost));
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
