//! Where a handler's events come from: a subscription, and another one in its place when this member has stood back.
//!
//! Of a keyed group one member works on most transports and the others stand by. A working member that meets a version
//! it does not know leaves the group for a moment, so that another takes over, and joins it again behind that one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::versions::Patience;
use crate::bus::Bus;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::subscription::{Health, Subscription};
use crate::transport::{Mode, Subscribe};

/// How long a member that stands back stays away: members that stand by look for a free place once a second.
const AWAY: Duration = Duration::from_secs(2);
/// How often a member that meets unknown versions looks for others, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Longest time between two times of standing back while the members are as many as the last time. Each take-over costs
/// an interruption, and on RabbitMQ one of the deliveries after which the broker gives a message up.
const RARELY: Duration = Duration::from_secs(1800);

/// A handler's side of its events; dropped, it ends them.
pub(super) struct Events {
    now: watch::Sender<Now>,
    /// Cancelled when the service fetches no more.
    stopping: CancellationToken,
    wanted: Arc<Notify>,
}

#[derive(Clone)]
enum Now {
    Open(Subscription),
    /// Between two subscriptions; the text says what keeps the next one from being made.
    Away(Option<String>),
    /// It ended though nobody stopped it, and cannot be opened again.
    Over,
}

impl Events {
    pub(super) async fn open(bus: &Bus, spec: Subscribe) -> Result<Self> {
        let subscription = bus.subscribe(spec).await?;
        Ok(Self {
            now: watch::Sender::new(Now::Open(subscription)),
            stopping: CancellationToken::new(),
            wanted: Arc::default(),
        })
    }

    /// A worker's hand on them.
    pub(super) fn taker(&self) -> Taker {
        let (stopping, wanted) = (self.stopping.clone(), self.wanted.clone());
        Taker { current: None, now: self.now.subscribe(), stopping, wanted }
    }

    /// Stands back when a worker asks for it, as long as this is not dropped.
    pub(super) fn stand_back_when_asked(&self, bus: Bus, spec: Subscribe, patience: Arc<Patience>) {
        let (now, stopping, wanted) = (self.now.clone(), self.stopping.clone(), self.wanted.clone());
        tokio::spawn(async move {
            let standing = Standing { bus, spec, patience, now, stopping: stopping.clone(), wanted };
            stopping.run_until_cancelled(standing.watch()).await;
        });
    }

    /// Opens the subscription again whenever a defect of ours ended it; answers why that cannot go on, or `None` when
    /// the service drains.
    pub(super) fn keep(
        &self,
        bus: Bus,
        spec: Subscribe,
    ) -> impl Future<Output = Option<Error>> + Send + 'static {
        let (now, stopping) = (self.now.clone(), self.stopping.clone());
        async move {
            let keeping = Keeping { bus, spec, now, stopping: stopping.clone() };
            stopping.run_until_cancelled(keeping.watch()).await
        }
    }

    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    pub(super) fn stop(&self) {
        self.stopping.cancel();
        if let Now::Open(subscription) = &*self.now.borrow() {
            subscription.stop();
        }
    }

    pub(super) fn pulse(&self) -> Beat {
        Beat(self.now.subscribe(), self.stopping.clone())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Shows whether the events come.
#[derive(Clone)]
pub(super) struct Beat(watch::Receiver<Now>, CancellationToken);

impl Beat {
    pub(super) fn health(&self) -> Health {
        match &*self.0.borrow() {
            Now::Open(subscription) => subscription.health().borrow().clone(),
            Now::Over => Health::Stopped,
            Now::Away(_) if self.1.is_cancelled() => Health::Stopped,
            Now::Away(Some(error)) => Health::Rebuilding(error.clone()),
            // As any member that stands by.
            Now::Away(None) => Health::Live,
        }
    }
}

/// One worker's hand on the events.
pub(crate) struct Taker {
    current: Option<Subscription>,
    now: watch::Receiver<Now>,
    stopping: CancellationToken,
    wanted: Arc<Notify>,
}

impl Clone for Taker {
    fn clone(&self) -> Self {
        let (stopping, wanted) = (self.stopping.clone(), self.wanted.clone());
        Self { current: None, now: self.now.clone(), stopping, wanted }
    }
}

impl Taker {
    /// The next event; `None` when no more will come.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Some(current) = &self.current
                && let Some(delivery) = current.next().await
            {
                return Some(delivery);
            }
            // The last clone of a subscription that is over must go, or its leases would be renewed.
            if self.current.take().is_some() {
                // It is replaced, or it is told that it cannot be.
                self.stopping.run_until_cancelled(self.now.changed()).await?.ok()?;
            }
            loop {
                match &*self.now.borrow_and_update() {
                    Now::Open(subscription) => {
                        self.current = Some(subscription.clone());
                        break;
                    }
                    Now::Over => return None,
                    Now::Away(_) => {}
                }
                // Who stops while it is away takes nothing more.
                self.stopping.run_until_cancelled(self.now.changed()).await?.ok()?;
            }
        }
    }

    /// Asks that another member of the group may work in place of this one.
    pub(super) fn stand_back(&self) {
        self.wanted.notify_one();
    }
}

/// What standing back takes.
struct Standing {
    bus: Bus,
    spec: Subscribe,
    patience: Arc<Patience>,
    now: watch::Sender<Now>,
    stopping: CancellationToken,
    wanted: Arc<Notify>,
}

impl Standing {
    async fn watch(self) {
        let mut last: Option<(u64, Instant)> = None;
        loop {
            self.wanted.notified().await;
            let met_for = self.patience.met_for().unwrap_or_default();
            let others = self.members().await;
            // Only a member that joined meanwhile, or nobody knows whether one did, is worth another try so soon.
            let due = last.is_none_or(|(members, at)| {
                others != Some(members) && others.is_some() || at.elapsed() >= met_for.clamp(LOOK.0, RARELY)
            });
            if due && others.is_none_or(|members| members > 1) {
                last = Some((others.unwrap_or_default(), Instant::now()));
                self.stand_back().await;
            }
            sleep(met_for.clamp(LOOK.0, LOOK.1)).await;
        }
    }

    /// How many members the group has, this one included; `None` when that cannot be told.
    async fn members(&self) -> Option<u64> {
        let Mode::Group(group) = &self.spec.mode else { return None };
        let groups = self.bus.admin().groups().await.ok()?;
        groups.iter().find(|status| status.group == *group).map(|status| status.members)
    }

    async fn stand_back(&self) {
        let Now::Open(subscription) = self.now.send_replace(Now::Away(None)) else { return };
        let Mode::Group(group) = &self.spec.mode else { return };
        tracing::info!(%group, "stands back, so that a member that knows more versions may work");
        subscription.stop();
        subscription.settled().await;
        drop(subscription);
        sleep(AWAY).await;
        let _ = open_again(&self.bus, &self.spec, &self.now, &self.stopping, |_| true).await;
    }
}

/// What opening a subscription again takes.
struct Keeping {
    bus: Bus,
    spec: Subscribe,
    now: watch::Sender<Now>,
    stopping: CancellationToken,
}

impl Keeping {
    async fn watch(self) -> Error {
        let mut seen = self.now.subscribe();
        loop {
            let open = match &*seen.borrow_and_update() {
                Now::Open(subscription) => Some(subscription.health()),
                _ => None,
            };
            let how = match open {
                Some(health) => tokio::select! {
                    how = ended(health) => how,
                    _ = seen.changed() => continue,
                },
                None => {
                    let _ = seen.changed().await;
                    continue;
                }
            };
            // Who stands back ends it, too.
            if seen.has_changed().unwrap_or(false) {
                continue;
            }
            let failed = match how {
                Health::Rebuilding(why) => {
                    tracing::warn!(why, "a subscription is opened again");
                    self.now.send_replace(Now::Away(Some(why)));
                    open_again(&self.bus, &self.spec, &self.now, &self.stopping, Error::is_temporary)
                        .await
                        .err()
                }
                _ => Some(Error::new(
                    ErrorKind::Closed,
                    "a subscription ended though nobody stopped it: its group was deleted, or the bus was closed",
                )),
            };
            if let Some(mut error) = failed {
                if let Mode::Group(group) = &self.spec.mode {
                    error = error.with("group", group);
                }
                self.now.send_replace(Now::Over);
                return error;
            }
        }
    }
}

/// How a subscription is when its transport has let go of it.
async fn ended(mut health: watch::Receiver<Health>) -> Health {
    while health.changed().await.is_ok() {}
    health.borrow().clone()
}

/// Opens a subscription in place of the one before, as long as `worth` another try.
async fn open_again(
    bus: &Bus,
    spec: &Subscribe,
    now: &watch::Sender<Now>,
    stopping: &CancellationToken,
    worth: impl Fn(&Error) -> bool,
) -> Result<()> {
    let mut pause = Duration::from_millis(100);
    loop {
        match bus.subscribe(spec.clone()).await {
            Ok(subscription) => {
                now.send_replace(Now::Open(subscription.clone()));
                // Who stopped it meanwhile saw that it was away.
                if stopping.is_cancelled() {
                    subscription.stop();
                }
                return Ok(());
            }
            Err(error) if !worth(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot join the group again; trying again");
                now.send_replace(Now::Away(Some(error.to_string())));
            }
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
