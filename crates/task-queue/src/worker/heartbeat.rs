//! The heartbeat, on a thread of its own so that no task function can hold it up: renews the lease, brings stops,
//! and lets go of everything the moment the lease may be over.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::running::{RunningTasks, StopReason};
use crate::{
    Result,
    store::{Channel, Renewal, TaskStore, WorkerInfo},
};

/// Starts the heartbeat of a worker that has just registered. Completes the returned signal when it has ended,
/// after `over`: from then on nothing registers any more.
pub(super) fn start(
    store: Arc<dyn TaskStore>,
    info: WorkerInfo,
    identity: watch::Sender<Uuid>,
    running: RunningTasks,
    over: CancellationToken,
) -> Result<oneshot::Receiver<()>> {
    let (ended, end) = oneshot::channel();
    crate::thread::run("task-lease", async move {
        beat(&*store, info, &identity, &running, &over).await;
        let _ = ended.send(());
    })?;
    Ok(end)
}

async fn beat(
    store: &dyn TaskStore,
    mut info: WorkerInfo,
    identity: &watch::Sender<Uuid>,
    running: &RunningTasks,
    over: &CancellationToken,
) {
    let lease = store.lease();
    let mut stops = store.notifier().watch(Channel::Stops);
    // Counted from before the request, so that it never outlasts the store's own count.
    let mut ends = Instant::now() + lease;
    loop {
        // The one place to end at: a request under way may take effect even if nobody waits for it.
        tokio::select! {
            () = over.cancelled() => return,
            _ = timeout(lease / 4, stops.changed()) => {}
        }
        let asked = Instant::now();
        match timeout_at(ends, store.renew(info.id)).await {
            Ok(Ok(Renewal::LeaseStatus(held))) if asked < ends => {
                ends = asked + lease;
                held.cancelled.iter().for_each(|id| running.stop(*id, StopReason::Cancelled));
                continue;
            }
            Ok(Err(error)) if Instant::now() < ends => {
                tracing::warn!(%error, worker = info.name, "heartbeat failed, trying again");
                sleep((lease / 20).min(Duration::from_millis(200))).await;
                continue;
            }
            _ => {}
        }
        // Lost, or not known to be held any more: others may be running these tasks already.
        tracing::warn!(worker = info.name, id = %info.id, "lease lost: stopping what runs and registering anew");
        running.stop_all(StopReason::Lost);
        while !over.is_cancelled() {
            info.id = Uuid::now_v7();
            let asked = Instant::now();
            match store.register(info.clone()).await {
                Ok(()) => {
                    ends = asked + lease;
                    identity.send_replace(info.id);
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, worker = info.name, "registering anew failed, trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}
