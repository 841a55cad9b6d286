//! The stream of deliveries between a transport and its consumers, bounded by credit.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::delivery::Delivery;
use crate::telemetry;

/// The pause between two log lines about one subscription that misses messages.
const QUIET: Duration = Duration::from_secs(1);

/// Whether a subscription makes progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet connected for the first time.
    #[default]
    Starting,
    /// Fetching.
    Live,
    /// Being rebuilt after a fault; the text says which. A subscription that ended like this can be opened again.
    Rebuilding(String),
    /// Ended; no more deliveries will come.
    Stopped,
}

/// Deliveries of one subscription. Clones share the stream: each delivery goes to one of them.
#[derive(Clone)]
pub struct Subscription {
    queue: async_channel::Receiver<Delivery>,
    max_in_flight: Arc<Semaphore>,
    health: watch::Receiver<Health>,
    stop: CancellationToken,
    missed: Arc<AtomicU64>,
    /// Tells the transport when the last clone goes.
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

/// Closes the queue and lets go of what nobody took, which releases it.
fn give_back(queue: &async_channel::Receiver<Delivery>) {
    queue.close();
    while let Ok(delivery) = queue.try_recv() {
        drop(delivery);
    }
}

/// The transport's end of a [`Subscription`].
pub struct Feed {
    queue: async_channel::Sender<Delivery>,
    /// Only to give back what nobody took when the transport ends the subscription.
    untaken: async_channel::Receiver<Delivery>,
    max_in_flight: Arc<Semaphore>,
    health: watch::Sender<Health>,
    stop: CancellationToken,
    gone: CancellationToken,
    missed: Arc<AtomicU64>,
    /// What was missed and not logged yet, and when the last line was.
    unlogged: Mutex<(u64, Option<Instant>)>,
}

impl Subscription {
    /// A connected pair. At most `max_in_flight` deliveries exist unsettled at any time.
    pub fn channel(max_in_flight: usize) -> (Feed, Self) {
        let max_in_flight = max_in_flight.max(1);
        // The queue holds what the credit allows, so a `try_send` under credit always has room.
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

    /// The next delivery; `None` when the subscription has ended.
    pub async fn next(&self) -> Option<Delivery> {
        loop {
            let delivery = self.queue.recv().await.ok()?;
            if delivery.is_ours() {
                return Some(delivery);
            }
        }
    }

    /// A delivery that is already here.
    pub fn try_next(&self) -> Option<Delivery> {
        std::iter::from_fn(|| self.queue.try_recv().ok()).find(Delivery::is_ours)
    }

    /// Stops fetching. What has been fetched and not taken goes back to the group; taken deliveries stay leased.
    pub fn stop(&self) {
        self.stop.cancel();
        give_back(&self.queue);
    }

    /// Waits until nothing that was delivered is unsettled; to be called after [`Subscription::stop`].
    pub(crate) async fn settled(&self) {
        let all = self
            .queue
            .capacity()
            .and_then(|max_in_flight| u32::try_from(max_in_flight).ok())
            .unwrap_or(u32::MAX);
        drop(self.max_in_flight.acquire_many(all).await);
    }

    /// How many messages a broadcast subscription has not got, because it was slower than the transport keeps them;
    /// always 0 for a group. Where the transport cannot tell whether a message that is gone would have matched, it
    /// counts. A log line and the metric [`BROADCAST_MISSED`](telemetry::BROADCAST_MISSED) say the same.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether the subscription makes progress; changes can be awaited.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

impl Feed {
    /// Waits for room for at least one delivery.
    pub async fn slot(&self) -> OwnedSemaphorePermit {
        self.max_in_flight.clone().acquire_owned().await.expect("the credit is never closed")
    }

    /// Waits until so many deliveries may be fetched, or all that the credit allows.
    #[allow(dead_code, reason = "each broker folder may be compiled out")]
    pub(crate) async fn room(&self, deliveries: usize) {
        let slots = u32::try_from(deliveries.min(self.max_in_flight())).unwrap_or(u32::MAX);
        drop(self.max_in_flight.acquire_many(slots).await);
    }

    /// How many deliveries may exist unsettled.
    pub(crate) fn max_in_flight(&self) -> usize {
        self.queue.capacity().expect("it is bounded")
    }

    /// Takes room if there is some now.
    pub fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.max_in_flight.clone().try_acquire_owned().ok()
    }

    /// How many deliveries may be fetched now.
    pub fn free(&self) -> usize {
        self.max_in_flight.available_permits()
    }

    /// How many deliveries nobody has taken yet.
    #[allow(dead_code, reason = "each broker folder may be compiled out")]
    pub(crate) fn untaken(&self) -> usize {
        self.untaken.len()
    }

    /// Hands over a delivery that holds a slot. It is released when the consumer is gone.
    pub fn push(&self, delivery: Delivery) {
        // Refused only when closed; then the delivery drops and releases itself.
        drop(self.queue.try_send(delivery));
    }

    /// Drops what nobody has taken yet: it is no longer ours to hand out.
    #[allow(dead_code, reason = "each broker folder may be compiled out")]
    pub(crate) fn take_back(&self) {
        while let Ok(delivery) = self.untaken.try_recv() {
            drop(delivery);
        }
    }

    /// Cancelled when the consumer stops or is gone: fetch no more. Leases of taken deliveries are still renewed.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled when the last clone of the subscription is dropped: renew no more leases.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Reports that the subscriber was too slow for `messages` messages of a broadcast: the transport no longer has
    /// them. Counted at once, logged at most once a second.
    pub fn missed(&self, transport: &'static str, messages: u64) {
        if messages == 0 {
            return;
        }
        metrics::counter!(telemetry::BROADCAST_MISSED, telemetry::SYSTEM => transport).increment(messages);
        self.missed.fetch_add(messages, Ordering::Relaxed);
        let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
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
            "a broadcast subscriber is too slow: messages were gone before it took them; counted since it began"
        );
    }

    /// Reports progress or trouble.
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
        if self.unlogged.get_mut().unwrap_or_else(PoisonError::into_inner).0 > 0 {
            self.log_missed();
        }
        // Dropped by the panic of the task that had it: a defect of ours, after which another subscription may work.
        let died = || Health::Rebuilding("the task behind the subscription died".into());
        self.report(if std::thread::panicking() { died() } else { Health::Stopped });
        // What the consumer has not taken must not be handled under a lease that nobody renews.
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
