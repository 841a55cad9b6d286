//! A live subscription of a group, as its deliveries, its fetching task and its connection see it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, watch};

use super::client::Client;
use super::dead_letters::DeadLetters;
use super::in_flight::InFlight;
use super::presence::{MemberStatus, Participant};
use event_transport::bounds;
use event_transport::subject::Group;
use event_transport::sync::lock;

/// One subscription of a group.
pub(super) struct Member {
    pub(super) me: Weak<Member>,
    pub(super) client: Arc<Client>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) group: Group,
    lease_ms: AtomicU64,
    in_flight: Mutex<InFlight>,
    /// Sends commands to the fetching task.
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Whether the member takes part in the group's work; otherwise it reports no status.
    pub(super) live: AtomicBool,
    /// Number of settlements in progress that take several steps.
    pub(super) busy: AtomicU64,
    pub(super) idle: Notify,
    /// Set to `true` when the member has to release everything.
    pub(super) closing: watch::Sender<bool>,
    /// Set to `true` when the fetching task has ended.
    pub(super) ended: watch::Sender<bool>,
}

/// A command to the fetching task.
pub(super) enum Command {
    /// Check that the group's record, streams and consumers still exist.
    Verify,
}

impl Member {
    pub(super) fn new(
        dead_letters: &Arc<DeadLetters>,
        group: Group,
        lease: Duration,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            client: dead_letters.client.clone(),
            dead_letters: dead_letters.clone(),
            group,
            lease_ms: AtomicU64::new(bounds::millis(lease)),
            in_flight: Mutex::default(),
            commands,
            live: AtomicBool::new(true),
            busy: AtomicU64::new(0),
            idle: Notify::new(),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        })
    }

    pub(super) fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        lock(&self.in_flight)
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.load(Ordering::Relaxed))
    }

    pub(super) fn set_lease(&self, lease: Duration) {
        self.lease_ms.store(bounds::millis(lease), Ordering::Relaxed);
    }

    /// Returns how long a lease is certain after it was requested: slightly less than the server's lease.
    pub(super) fn certain(&self) -> Duration {
        let lease = self.lease();
        lease - lease / 20
    }

    /// Waits until no settlement with several steps is in progress.
    pub(super) async fn until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Participant for Member {
    fn status(&self) -> Option<MemberStatus> {
        let live = self.live.load(Ordering::Acquire);
        live.then(|| MemberStatus { group: self.group.as_str().into(), out: self.in_flight().out() })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.send_replace(true);
            let mut ended = self.ended.subscribe();
            let _ = tokio::time::timeout(Duration::from_secs(5), ended.wait_for(|ended| *ended)).await;
            let _ = tokio::time::timeout(Duration::from_secs(5), self.until_idle()).await;
        })
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("group", &self.group).finish_non_exhaustive()
    }
}
