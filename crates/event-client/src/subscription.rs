//! The stream of deliveries between a transport and its consumers, bounded by credit.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::delivery::Delivery;

/// Whether a subscription makes progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet connected for the first time.
    #[default]
    Starting,
    /// Fetching.
    Live,
    /// Being rebuilt after a fault; the text says which.
    Rebuilding(String),
    /// Ended; no more deliveries will come.
    Stopped,
}

/// Deliveries of one subscription. Clones share the stream: each delivery goes to one of them.
#[derive(Clone)]
pub struct Subscription {
    queue: async_channel::Receiver<Delivery>,
    health: watch::Receiver<Health>,
    stop: CancellationToken,
    /// Stops the transport's feeding task when the last clone goes.
    _guard: Arc<DropGuard>,
}

/// The transport's end of a [`Subscription`].
pub struct Feed {
    queue: async_channel::Sender<Delivery>,
    credit: Arc<Semaphore>,
    health: watch::Sender<Health>,
    stop: CancellationToken,
}

impl Subscription {
    /// A connected pair. At most `credit` deliveries exist unsettled at any time.
    pub fn channel(credit: usize) -> (Feed, Self) {
        let credit = credit.max(1);
        // The queue holds what the credit allows, so a `try_send` under credit always has room.
        let (sender, queue) = async_channel::bounded(credit);
        let (health_sender, health) = watch::channel(Health::Starting);
        let stop = CancellationToken::new();
        let feed = Feed {
            queue: sender,
            credit: Arc::new(Semaphore::new(credit)),
            health: health_sender,
            stop: stop.clone(),
        };
        let guard = Arc::new(stop.clone().drop_guard());
        (feed, Self { queue, health, stop, _guard: guard })
    }

    /// The next delivery; `None` when the subscription has ended.
    pub async fn next(&self) -> Option<Delivery> {
        self.queue.recv().await.ok()
    }

    /// A delivery that is already here.
    pub fn try_next(&self) -> Option<Delivery> {
        self.queue.try_recv().ok()
    }

    /// Stops fetching. What has been fetched and not taken goes back to the group; taken deliveries stay leased.
    pub fn stop(&self) {
        self.stop.cancel();
        self.queue.close();
        while let Ok(delivery) = self.queue.try_recv() {
            drop(delivery);
        }
    }

    /// Whether the subscription makes progress; changes can be awaited.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

impl Feed {
    /// Waits for room for at least one delivery.
    pub async fn slot(&self) -> OwnedSemaphorePermit {
        self.credit.clone().acquire_owned().await.expect("the credit is never closed")
    }

    /// Takes room if there is some now.
    pub fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.credit.clone().try_acquire_owned().ok()
    }

    /// How many deliveries may be fetched now.
    pub fn free(&self) -> usize {
        self.credit.available_permits()
    }

    /// Hands over a delivery that holds a slot. It is released when the consumer is gone.
    pub fn push(&self, delivery: Delivery) {
        // Refused only when closed; then the delivery drops and releases itself.
        drop(self.queue.try_send(delivery));
    }

    /// Cancelled when the consumer stops or is gone.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
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
        self.report(Health::Stopped);
        self.queue.close();
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
