//! `Subscription` and `Feed`: the bounded queue of deliveries between a transport and its consumers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::delivery::Delivery;
use crate::sync::lock;
use crate::telemetry;

/// The shortest pause between two log lines about missed messages of one subscription.
const QUIET: Duration = Duration::from_secs(1);

/// Whether a subscription makes progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// The transport has not connected it for the first time yet.
    #[default]
    Starting,
    /// The transport fetches messages for it.
    Live,
    /// The transport rebuilds it after a fault; the text describes the fault. If the subscription ends in this state,
    /// the caller can open another one.
    Rebuilding(String),
    /// It has ended; no more deliveries will come.
    Stopped,
}

/// The consumer's end of one subscription. Clones share the queue: each delivery goes to one of them.
#[derive(Clone)]
pub struct Subscription {
    queue: async_channel::Receiver<Delivery>,
    max_in_flight: Arc<Semaphore>,
    health: watch::Receiver<Health>,
    stop: CancellationToken,
    missed: Arc<AtomicU64>,
    /// Ends the subscription when the last clone is dropped.
    _last: Arc<Last>,
}

/// Dropped with the last clone of a subscription.
struct Last {
    queue: async_channel::Receiver<Delivery>,
    _gone: DropGuard,
}

impl Drop for Last {
    fn drop(&mut self) {
        give_back(&self.queue);
    }
}

/// Closes the queue and drops the deliveries in it, which releases them.
fn give_back(queue: &async_channel::Receiver<Delivery>) {
    queue.close();
    while let Ok(delivery) = queue.try_recv() {
        drop(delivery);
    }
}

/// The transport's end of a [`Subscription`]: it puts deliveries into the queue.
pub struct Feed {
    queue: async_channel::Sender<Delivery>,
    /// Used only to release the queued deliveries when the transport ends the subscription.
    untaken: async_channel::Receiver<Delivery>,
    max_in_flight: Arc<Semaphore>,
    health: watch::Sender<Health>,
    stop: CancellationToken,
    gone: CancellationToken,
    missed: Arc<AtomicU64>,
    /// The number of missed messages that are not logged yet, and the time of the last log line.
    unlogged: Mutex<(u64, Option<Instant>)>,
}

impl Subscription {
    /// Creates both ends. At most `max_in_flight` unsettled deliveries exist at any time.
    pub fn channel(max_in_flight: usize) -> (Feed, Self) {
        let max_in_flight = max_in_flight.max(1);
        // The queue has as many places as there are permits, so `try_send` with a permit always has room.
        let (sender, queue) = async_channel::bounded(max_in_flight);
        let (health_sender, health) = watch::channel(Health::Starting);
        let gone = CancellationToken::new();
        let stop = gone.child_token();
        let permits = Arc::new(Semaphore::new(max_in_flight));
        let missed = Arc::new(AtomicU64::new(0));
        let feed = Feed {
            queue: sender,
            untaken: queue.clone(),
            max_in_flight: permits.clone(),
            health: health_sender,
            stop: stop.clone(),
            gone: gone.clone(),
            missed: missed.clone(),
            unlogged: Mutex::default(),
        };
        let last = Arc::new(Last { queue: queue.clone(), _gone: gone.drop_guard() });
        (feed, Self { queue, max_in_flight: permits, health, stop, missed, _last: last })
    }

    /// Waits for the next delivery; `None` when the subscription has ended.
    pub async fn next(&self) -> Option<Delivery> {
        loop {
            let delivery = self.queue.recv().await.ok()?;
            if delivery.is_ours() {
                return Some(delivery);
            }
        }
    }

    /// Returns a delivery that is already queued, without waiting.
    #[inline]
    pub fn try_next(&self) -> Option<Delivery> {
        std::iter::from_fn(|| self.queue.try_recv().ok()).find(Delivery::is_ours)
    }

    /// Stops fetching. Queued deliveries are released to the group; deliveries that a consumer has taken stay leased.
    pub fn stop(&self) {
        self.stop.cancel();
        give_back(&self.queue);
    }

    /// Waits until every delivery is settled; to be called after [`Subscription::stop`].
    pub async fn settled(&self) {
        let all = self
            .queue
            .capacity()
            .and_then(|max_in_flight| u32::try_from(max_in_flight).ok())
            .unwrap_or(u32::MAX);
        drop(self.max_in_flight.acquire_many(all).await);
    }

    /// The number of messages that a broadcast subscription missed, because the transport dropped them before the
    /// subscriber took them; always 0 for a group. A transport that cannot know whether a dropped message would have
    /// matched counts it. A log line and the metric [`BROADCAST_MISSED`](telemetry::BROADCAST_MISSED) report the same
    /// number.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// The state of the subscription; the receiver can await changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

impl Feed {
    /// Waits for a permit for one delivery.
    pub async fn slot(&self) -> OwnedSemaphorePermit {
        self.max_in_flight.clone().acquire_owned().await.expect("the credit is never closed")
    }

    /// Waits until `deliveries` permits are free, or all of them if `max_in_flight` is lower.
    pub async fn room(&self, deliveries: usize) {
        let slots = u32::try_from(deliveries.min(self.max_in_flight())).unwrap_or(u32::MAX);
        drop(self.max_in_flight.acquire_many(slots).await);
    }

    /// The number of deliveries that may be unsettled at a time.
    #[inline]
    pub fn max_in_flight(&self) -> usize {
        self.queue.capacity().expect("it is bounded")
    }

    /// Takes a permit for one delivery if one is free now.
    #[inline]
    pub fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.max_in_flight.clone().try_acquire_owned().ok()
    }

    /// The number of free permits: deliveries that the transport may fetch now.
    #[inline]
    pub fn free(&self) -> usize {
        self.max_in_flight.available_permits()
    }

    /// The number of queued deliveries that no consumer has taken yet.
    #[inline]
    pub fn untaken(&self) -> usize {
        self.untaken.len()
    }

    /// Queues a delivery that holds a permit. If the consumer has dropped the subscription, the delivery is released.
    #[inline]
    pub fn push(&self, delivery: Delivery) {
        // `try_send` fails only when the queue is closed; dropping the delivery then releases it.
        drop(self.queue.try_send(delivery));
    }

    /// Drops the queued deliveries that no consumer has taken yet, for example because their leases were lost.
    pub fn take_back(&self) {
        while let Ok(delivery) = self.untaken.try_recv() {
            drop(delivery);
        }
    }

    /// Cancelled when the consumer stops or drops the subscription: the transport must fetch no more. It still renews
    /// the leases of taken deliveries.
    #[inline]
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled when the last clone of the subscription is dropped: the transport must stop renewing leases.
    #[inline]
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Reports that the transport dropped `messages` messages of a broadcast before the subscriber took them.
    /// They are counted at once and logged at most once per second.
    pub fn missed(&self, transport: &'static str, messages: u64) {
        if messages == 0 {
            return;
        }
        metrics::counter!(telemetry::BROADCAST_MISSED, telemetry::SYSTEM => transport).increment(messages);
        self.missed.fetch_add(messages, Ordering::Relaxed);
        let mut unlogged = lock(&self.unlogged);
        unlogged.0 += messages;
        if unlogged.1.is_none_or(|at| at.elapsed() >= QUIET) {
            *unlogged = (0, Some(Instant::now()));
            drop(unlogged);
            self.log_missed();
        }
    }

    fn log_missed(&self) {
        tracing::warn!(
            missed = self.missed.load(Ordering::Relaxed),
            "a broadcast subscriber is too slow and missed messages; `missed` is the number since it subscribed"
        );
    }

    /// Publishes a new health state; an unchanged state does not wake the receivers.
    pub fn report(&self, health: Health) {
        self.health.send_if_modified(|now| {
            let changed = *now != health;
            if changed {
                *now = health;
            }
            changed
        });
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if lock(&self.unlogged).0 > 0 {
            self.log_missed();
        }
        // If a panic of the transport's task drops the feed, that is a defect of this library, and another subscription
        // may work: `Rebuilding` lets the caller open one.
        let died = || Health::Rebuilding("the task that fetches for the subscription panicked".into());
        self.report(if std::thread::panicking() { died() } else { Health::Stopped });
        // Nothing renews the leases of the queued deliveries from here on, so a consumer must not start them.
        give_back(&self.untaken);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("health", &*self.health.borrow()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("free", &self.free()).finish_non_exhaustive()
    }
}
