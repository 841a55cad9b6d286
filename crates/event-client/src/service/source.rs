//! The source of a handler's events: a subscription, which is replaced by another one when this member has stood
//! back.
//!
//! On most transports one member of a keyed group works and the others stand by. A working member that receives a
//! version that it does not know leaves the group for a moment, so that another member takes over, and joins the
//! group again behind that member.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::versions::Patience;
use crate::bus::Bus;
use crate::delivery::Delivery;
use crate::subscription::{Health, Subscription};
use crate::transport::{Mode, Subscribe};
use event_transport::error::{Error, ErrorKind, Result};

/// The time for which a member that stands back leaves the group: standby members look for a free place once a
/// second.
const AWAY: Duration = Duration::from_secs(2);
/// The shortest and the longest interval at which a member that receives unknown versions looks for other members.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest interval between two times of standing back while the number of members is the same. Each takeover
/// interrupts the work, and on RabbitMQ it costs one of the deliveries after which the broker gives a message up.
const RARELY: Duration = Duration::from_secs(1800);

/// The source of a handler's events; dropping it ends the source.
pub(super) struct Events {
    now: watch::Sender<Now>,
    /// Cancelled when the service stops fetching.
    stopping: CancellationToken,
    wanted: Arc<Notify>,
}

#[derive(Clone)]
enum Now {
    Open(Subscription),
    /// Between two subscriptions; the text is the error that prevents the next one.
    Away(Option<String>),
    /// The subscription ended although the service did not stop it, and it cannot be opened again.
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

    /// Creates a worker's receiver of the events.
    pub(super) fn taker(&self) -> Taker {
        let (stopping, wanted) = (self.stopping.clone(), self.wanted.clone());
        Taker { current: None, now: self.now.subscribe(), stopping, wanted }
    }

    /// Starts the task that stands back when a worker requests it, until this value is dropped.
    pub(super) fn stand_back_when_asked(&self, bus: Bus, spec: Subscribe, patience: Arc<Patience>) {
        let (now, stopping, wanted) = (self.now.clone(), self.stopping.clone(), self.wanted.clone());
        tokio::spawn(async move {
            let standing = Standing { bus, spec, patience, now, stopping: stopping.clone(), wanted };
            stopping.run_until_cancelled(standing.watch()).await;
        });
    }

    /// Opens the subscription again whenever a defect of this library ended it; returns the reason why that is no
    /// longer possible, or `None` when the service drains.
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

/// Reports whether the source of events makes progress.
#[derive(Clone)]
pub(super) struct Beat(watch::Receiver<Now>, CancellationToken);

impl Beat {
    pub(super) fn health(&self) -> Health {
        match &*self.0.borrow() {
            Now::Open(subscription) => subscription.health().borrow().clone(),
            Now::Over => Health::Stopped,
            Now::Away(_) if self.1.is_cancelled() => Health::Stopped,
            Now::Away(Some(error)) => Health::Rebuilding(error.clone()),
            // A member that stands by is live, too.
            Now::Away(None) => Health::Live,
        }
    }
}

/// One worker's receiver of the events.
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
    /// Returns the next event; `None` when no more will arrive.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Some(current) = &self.current
                && let Some(delivery) = current.next().await
            {
                return Some(delivery);
            }
            // The last clone of an ended subscription must be dropped, otherwise its leases would be renewed.
            if self.current.take().is_some() {
                // Waits until the subscription is replaced, or until it is known that it cannot be.
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
                // A worker that is stopped while the subscription is away receives nothing more.
                self.stopping.run_until_cancelled(self.now.changed()).await?.ok()?;
            }
        }
    }

    /// Requests that another member of the group works in place of this one.
    pub(super) fn stand_back(&self) {
        self.wanted.notify_one();
    }
}

/// The state of the task that stands back.
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
            // Before that time another try is useful only if the number of members is known and has changed.
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

    /// Returns the number of members of the group, including this one; `None` when it is unknown.
    async fn members(&self) -> Option<u64> {
        let Mode::Group(group) = &self.spec.mode else { return None };
        let groups = self.bus.admin().groups().await.ok()?;
        groups.iter().find(|status| status.group == *group).map(|status| status.members)
    }

    async fn stand_back(&self) {
        let Now::Open(subscription) = self.now.send_replace(Now::Away(None)) else { return };
        let Mode::Group(group) = &self.spec.mode else { return };
        tracing::info!(%group, "standing back, so that a member that knows more versions can take over");
        subscription.stop();
        subscription.settled().await;
        drop(subscription);
        sleep(AWAY).await;
        let _ = open_again(&self.bus, &self.spec, &self.now, &self.stopping, |_| true).await;
    }
}

/// The state of the task that opens a subscription again.
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
            // Standing back ends the subscription, too.
            if seen.has_changed().unwrap_or(false) {
                continue;
            }
            let failed = match how {
                Health::Rebuilding(why) => {
                    tracing::warn!(why, "opening a subscription again");
                    self.now.send_replace(Now::Away(Some(why)));
                    open_again(&self.bus, &self.spec, &self.now, &self.stopping, Error::is_temporary)
                        .await
                        .err()
                }
                _ => Some(Error::new(
                    ErrorKind::Closed,
                    "a subscription ended although it was not stopped: its group was deleted, or the bus was closed",
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

/// Waits until the transport has dropped its end of a subscription; returns the last health.
async fn ended(mut health: watch::Receiver<Health>) -> Health {
    while health.changed().await.is_ok() {}
    health.borrow().clone()
}

/// Opens a subscription in place of the previous one; retries as long as `worth` accepts the error.
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
                // A stop during this call found no subscription that it could stop.
                if stopping.is_cancelled() {
                    subscription.stop();
                }
                return Ok(());
            }
            Err(error) if !worth(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot join the group again; retrying");
                now.send_replace(Now::Away(Some(error.to_string())));
            }
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
