//! Settles ended tasks in batches; a store that does not answer is asked again, so that no end is lost.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use crate::store::{Settlement, TaskStore};

/// Ends settled in one transaction at most.
const BATCH: usize = 500;
/// How often a batch is offered before it is given up: the lease is long over by then and the store has handed
/// the tasks on.
const TRIES: u32 = 60;

pub(super) async fn run(store: Arc<dyn TaskStore>, mut ends: mpsc::Receiver<Settlement>) {
    let mut batch = Vec::with_capacity(BATCH);
    while ends.recv_many(&mut batch, BATCH).await > 0 {
        settle(&*store, std::mem::take(&mut batch)).await;
    }
}

async fn settle(store: &dyn TaskStore, batch: Vec<Settlement>) {
    for tries in 1..=TRIES {
        match store.settle(batch.clone()).await {
            Ok(held) => {
                for (end, _) in batch.iter().zip(held).filter(|(_, held)| !held) {
                    tracing::warn!(id = %end.id, fence = end.fence, "a late end was refused: the lease had been lost");
                    metrics::counter!("tasks_fenced").increment(1);
                }
                return;
            }
            Err(error) => {
                tracing::warn!(%error, tries, tasks = batch.len(), "settling tasks failed, trying again");
                tokio::time::sleep(Duration::from_millis(50 << tries.min(5))).await;
            }
        }
    }
    tracing::error!(tasks = batch.len(), "the store took no ends; their tasks will run again");
}
