//! A running service: its health, its counts, and how it stops.

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
use super::stats::{Counts, Stats};
use crate::bus::Bus;
use crate::subscription::Health;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};

/// A started service. Dropping it stops the workers at once; their unsettled messages return to their groups.
#[must_use = "dropping it stops the service"]
pub struct Running {
    name: SmolStr,
    bus: Bus,
    bound: Duration,
    handlers: Vec<Handler>,
    /// One task for each source of work; it returns the reason why the source cannot continue.
    keepers: JoinSet<Option<Error>>,
    /// Cancelled by [`ServiceHandle::stop`]; [`Running::run`] then drains.
    stop: CancellationToken,
    /// Cancelled when draining begins.
    stopping: CancellationToken,
    /// Answers health requests until the end, so that they also report the draining.
    answering: Option<AbortOnDropHandle<()>>,
}

struct Handler {
    group: SmolStr,
    stats: Arc<Stats>,
    source: StopHandle,
    workers: JoinSet<()>,
}

/// A handler's source of work, through which it is stopped.
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
        // Notifies layers that wait, even when the service is dropped without draining.
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
            stop: CancellationToken::new(),
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

    /// Runs the task that keeps the source of a handler of events open.
    pub(super) fn keep(&mut self, keeper: impl Future<Output = Option<Error>> + Send + 'static) {
        self.keepers.spawn(keeper);
    }

    /// Watches the source of a handler of requests: its receiver ends with the transport's task or with the bus.
    pub(super) fn watch(&mut self, subject: SmolStr, ended: CancellationToken) {
        let stopping = self.stopping.clone();
        self.keepers.spawn(async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => None,
                () = ended.cancelled() => {
                    let text =
                        "the handler receives no more requests although it was not stopped: the bus was closed";
                    Some(Error::new(ErrorKind::Closed, text).with("subject", subject))
                }
            }
        });
    }

    /// Resolves when a handler receives no more work although the service was not stopped, and returns the reason:
    /// its group was deleted, the bus was closed, or a defect. [`Service::run_until`](super::Service::run_until) ends
    /// then.
    pub async fn failed(&mut self) -> Error {
        loop {
            match self.keepers.join_next().await {
                Some(Ok(Some(error))) => return error.during("run service").with("service", &self.name),
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Starts to answer health requests.
    pub(super) async fn answer_health(&mut self) -> Result<()> {
        let handlers = self.handlers.iter().map(|handler| (handler.group.clone(), handler.pulse())).collect();
        self.answering = health::answer(&self.bus, &self.name, handlers).await?;
        Ok(())
    }

    /// Returns the bus with the settings of this service.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Returns the counts since the start, of each group and each request subject.
    pub fn counts(&self) -> BTreeMap<SmolStr, Counts> {
        self.handle().counts()
    }

    /// Returns the counters by group; they stay readable after this value is dropped.
    pub fn stats(&self) -> BTreeMap<SmolStr, Arc<Stats>> {
        self.handlers.iter().map(|handler| (handler.group.clone(), handler.stats.clone())).collect()
    }

    /// Returns the health of each handler's source of work; the service is ready when all are `Live`.
    pub fn health(&self) -> BTreeMap<SmolStr, Health> {
        self.handle().health()
    }

    /// Whether every subscription makes progress.
    pub fn is_ready(&self) -> bool {
        self.health().values().all(|health| *health == Health::Live)
    }

    /// A handle that reports the health and the counts of this service and can stop it, for a health check or a
    /// signal handler beside the task that runs the service.
    pub fn handle(&self) -> ServiceHandle {
        let handlers = self.handlers.iter();
        ServiceHandle {
            handlers: handlers
                .map(|handler| (handler.group.clone(), handler.stats.clone(), handler.pulse()))
                .collect(),
            stop: self.stop.clone(),
        }
    }

    /// Runs until [`ServiceHandle::stop`] is called, then drains.
    ///
    /// # Errors
    /// The errors of [`Running::drain`], and an error when a handler receives no more work although the service was
    /// not stopped ([`Running::failed`]).
    pub async fn run(self) -> Result<()> {
        let stop = self.stop.clone();
        self.run_until(stop.cancelled()).await
    }

    /// Runs until `shutdown` resolves or a handle stops it, then drains.
    pub(super) async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let stop = self.stop.clone();
        let failure = tokio::select! {
            () = shutdown => None,
            () = stop.cancelled() => None,
            error = self.failed() => Some(error),
        };
        let drained = self.drain().await;
        failure.map_or(drained, Err)
    }

    /// Stops fetching, releases the messages that have not started, and waits for running work within the drain
    /// bound.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] naming the groups whose work was abandoned, [`ErrorKind::Unavailable`] when finished
    /// work could not be settled; in both cases the messages are delivered again.
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

/// Reports the state of a started [`Service`](super::Service) and can stop it. Clones refer to the same service; no
/// clone keeps it running.
///
/// ```
/// # use event_client::{Bus, service::{Raw, Service}};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # let bus = Bus::connect("memory:handle").await?;
/// # async fn audit(_: Raw) {}
/// let running = Service::new("audit").bus(bus).on_subject("orders.>", audit).start().await?;
/// let handle = running.handle();
/// let task = tokio::spawn(running.run());
/// // Answers a readiness probe: true once every handler receives work.
/// while !handle.is_ready() { tokio::task::yield_now().await }
/// handle.stop(); // a signal handler
/// task.await.expect("no panic")?;
/// assert!(!handle.is_ready());
/// # Ok::<(), event_client::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct ServiceHandle {
    handlers: Arc<[(SmolStr, Arc<Stats>, Pulse)]>,
    stop: CancellationToken,
}

impl ServiceHandle {
    /// Whether every handler receives work and the service was not stopped.
    pub fn is_ready(&self) -> bool {
        !self.stop.is_cancelled() && self.handlers.iter().all(|(_, _, pulse)| pulse.health() == Health::Live)
    }

    /// The health of each handler's source of work, by group or request subject.
    pub fn health(&self) -> BTreeMap<SmolStr, Health> {
        self.handlers.iter().map(|(group, _, pulse)| (group.clone(), pulse.health())).collect()
    }

    /// Counts since the start, by group or request subject.
    pub fn counts(&self) -> BTreeMap<SmolStr, Counts> {
        self.handlers.iter().map(|(group, stats, _)| (group.clone(), stats.counts())).collect()
    }

    /// Requests the service to drain: [`Running::run`] and [`Service::run_until`](super::Service::run_until) then
    /// drain it and return. When the owner of the [`Running`] calls neither, only the owner's
    /// [`drain`](Running::drain) stops the service.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceHandle").field("health", &self.health()).finish_non_exhaustive()
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
