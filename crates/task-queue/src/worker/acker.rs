//! Settles ended tasks in batches. When the store is unavailable, the batch is sent again, so that no end is lost.
//! An end is counted in the metrics only after the store has recorded it.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::running::End;
use crate::{
    ErrorKind,
    store::{Resolution, Settled, Settlement, TaskStore},
};

/// The maximum number of ends settled in one transaction.
const BATCH: usize = 500;
/// The number of attempts to settle a batch. After the last one the batch is given up: by then the lease has
/// expired long ago and the store has put the tasks back in their queue.
const TRIES: u32 = 60;

pub(super) async fn run(store: Arc<dyn TaskStore>, mut ends: mpsc::Receiver<End>) {
    let mut batch = Vec::with_capacity(BATCH);
    while ends.recv_many(&mut batch, BATCH).await > 0 {
        settle(&*store, std::mem::take(&mut batch)).await;
    }
}

async fn settle(store: &dyn TaskStore, mut open: Vec<End>) {
    for tries in 1..=TRIES {
        let asked: Vec<Settlement> = open.iter().map(|end| end.settlement.clone()).collect();
        let answers = store.settle(asked).await;
        let mut unanswered = Vec::new();
        let mut last = None;
        for (end, answer) in open.into_iter().zip(answers) {
            match answer {
                Ok(Settled::Recorded) => recorded(&end),
                Ok(Settled::Fenced) => {
                    let Settlement { id, fence, .. } = &end.settlement;
                    tracing::warn!(%id, fence, "the store refused a late settlement because the lease was lost");
                    end.task.count("tasks_fenced");
                }
                Err(error) if error.kind() == ErrorKind::Refused => {
                    tracing::error!(id = %end.settlement.id, %error, "the store cannot record the end of a task");
                    end.task.count("tasks_dead");
                }
                Err(error) => {
                    last = Some(error);
                    unanswered.push(end);
                }
            }
        }
        let Some(error) = last else { return };
        open = unanswered;
        tracing::warn!(%error, tries, tasks = open.len(), "settling tasks failed, trying again");
        tokio::time::sleep(Duration::from_millis(50 << tries.min(5))).await;
    }
    tracing::error!(
        tasks = open.len(),
        "the store did not record the ends of tasks; the tasks will run again"
    );
}

fn recorded(end: &End) {
    match end.settlement.resolution {
        Resolution::Succeed(_) => end.task.count("tasks_succeeded"),
        Resolution::DeadLetter => {
            end.task.count("tasks_failed");
            end.task.count("tasks_dead");
        }
        Resolution::Retry { counts: true, .. } => {
            end.task.count("tasks_failed");
            end.task.count("tasks_retried");
        }
        Resolution::Retry { counts: false, .. } | Resolution::Cancel | Resolution::Release => {}
    }
}
