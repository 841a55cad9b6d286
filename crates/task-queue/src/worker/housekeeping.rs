//! Runs the store's housekeeping about every second and reports the queue depths to the metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::store::{State, TaskStore};

const EVERY: Duration = Duration::from_secs(1);
/// The number of rounds between two counts of the depths, because counting costs more than a housekeeping check.
const DEPTHS: u32 = 60;

pub(super) async fn run(store: Arc<dyn TaskStore>, stopping: CancellationToken) {
    let mut seen = BTreeSet::<String>::new();
    for round in 0u32.. {
        match store.maintain().await {
            Ok(maintenance) => {
                for ((task, queue), tasks) in maintenance.dead {
                    metrics::counter!("tasks_dead", "task" => task, "queue" => queue).increment(tasks);
                }
            }
            Err(error) => tracing::warn!(%error, "housekeeping in the task store failed, trying again"),
        }
        if round % DEPTHS == 0
            && let Ok(queues) = store.depths().await
        {
            let queues: BTreeMap<_, _> =
                queues.into_iter().map(|queue| (queue.queue, queue.counts)).collect();
            seen.extend(queues.keys().cloned());
            for queue in &seen {
                for state in [State::Queued, State::Scheduled, State::Running, State::Dead] {
                    // A queue without tasks is missing from the counts and must be reported as 0.
                    let tasks = queues.get(queue).and_then(|counts| counts.get(&state)).copied();
                    metrics::gauge!("task_queue_depth", "queue" => queue.clone(), "state" => state.as_str())
                        .set(tasks.unwrap_or_default() as f64);
                }
            }
        }
        // Jitter, so that many workers do not query the store at the same moment.
        let wait = EVERY.mul_f64(0.75 + fastrand::f64() / 2.0);
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
