//! The waits of a task that feeds a subscription: for a free slot, and for the next message.

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::subscription::Feed;

/// Largest number of deliveries fetched under one hold of the lock, so that publishers are not blocked for long.
pub(super) const BATCH: usize = 512;

/// Next step of a feeding task.
pub(super) enum Next {
    /// It fetched entries, or has to fetch again.
    Deliver,
    /// It waits for a wake-up or until this time.
    Wait(Option<Instant>),
    /// Its group was deleted or its connection closed.
    End,
}

/// Waits until at least one slot is free. Returns `false` when the subscription has stopped or the connection is
/// closed.
pub(super) async fn room(feed: &Feed, closed: &CancellationToken) -> bool {
    let over = || feed.stopped().is_cancelled() || closed.is_cancelled();
    if feed.free() == 0 && !over() {
        tokio::select! {
            slot = feed.slot() => drop(slot),
            () = feed.stopped().cancelled() => {}
            () = closed.cancelled() => {}
        }
    }
    !over()
}

/// Waits for a wake-up, for a time, or for the end of the subscription or the connection.
pub(super) async fn wait(feed: &Feed, closed: &CancellationToken, wake: &Notify, until: Option<Instant>) {
    let due = async {
        match until {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wake.notified() => {}
        () = due => {}
        () = feed.stopped().cancelled() => {}
        () = closed.cancelled() => {}
    }
}
