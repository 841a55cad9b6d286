//! Settles ended tasks in batches; a store that does not answer is asked again, so that no end is lost. What is counted
//! is what the store has recorded.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::running::End;
use crate::{
    ErrorKind,
    store::{Resolution, Settled, Settlement, TaskStore},
};

/// Ends settled in one transaction at most.
const BATCH: usize = 500;
/// How often a batch is offered before it is given up: the lease is long over by then and the store has handed
/// the tasks on.
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
                    tracing::warn!(%id, fence, "a late end was refused: the lease had been lost");
                    end.task.count("tasks_fenced");
                }
                Err(error) if error.kind() == ErrorKind::Refused => {
                    tracing::error!(id = %end.settlement.id, %error, "the end of a task cannot be recorded");
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
    tracing::error!(tasks = open.len(), "the store took no ends; their tasks will run again");
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
