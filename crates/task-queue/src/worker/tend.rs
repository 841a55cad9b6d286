//! Housekeeping every second, and the queue depths for the metrics.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::store::{State, TaskStore};

const EVERY: Duration = Duration::from_secs(1);
/// Depths are counted once in so many rounds: counting costs more than looking.
const DEPTHS: u32 = 60;

pub(super) async fn run(store: Arc<dyn TaskStore>, stopping: CancellationToken) {
    for round in 0u32.. {
        if let Err(error) = store.tend().await {
            tracing::warn!(%error, "housekeeping in the task store failed, trying again");
        }
        if round % DEPTHS == 0
            && let Ok(queues) = store.stats().await
        {
            for queue in queues {
                for state in [State::Queued, State::Scheduled, State::Running, State::Dead] {
                    let tasks = queue.counts.get(&state).copied().unwrap_or_default();
                    metrics::gauge!("task_queue_depth", "queue" => queue.queue.clone(), "state" => state.as_str())
                        .set(tasks as f64);
                }
            }
        }
        // Jitter, so that many workers do not look at the same moment.
        let wait = EVERY.mul_f64(0.75 + fastrand::f64() / 2.0);
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
