//! Sends heartbeats on a separate thread, so that no task function can delay them: renews the lease, receives
//! cancellations, and stops all tasks when the lease may have expired.

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

/// Starts the heartbeat of a worker that has just registered. It ends after `over` and then completes the returned
/// receiver; from then on no code registers this worker again.
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
    // Measured from before the request, so that this lease never ends later than the lease in the store.
    let mut ends = Instant::now() + lease;
    loop {
        // The loop ends only here: a request in progress may take effect even if its future is dropped.
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
        // The lease is lost or possibly lost: other workers may already run these tasks.
        tracing::warn!(worker = info.name, id = %info.id, "lease lost: stopping all tasks and registering again");
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
                    tracing::warn!(%error, worker = info.name, "registering the worker again failed, trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}
