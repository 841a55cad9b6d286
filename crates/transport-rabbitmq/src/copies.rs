//! Copies that a member stores before it acknowledges the originals: retries, releases and dead letters.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio_util::task::AbortOnDropHandle;

use super::codec::Facts;
use super::dead_letters::DeadLetters;
use super::delay_queues::DelayQueues;
use super::ledger::Item;
use super::settle::Asker;
use event_transport::delivery::Rejection;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;

/// The end of a copy: the original, the caller to notify, and the result.
pub(super) struct Copied {
    pub(super) item: Item,
    pub(super) answer: Option<Asker>,
    pub(super) result: Result<()>,
}

/// The copies in progress of one member.
pub(super) struct Copies {
    group: Group,
    delay_queues: Arc<DelayQueues>,
    dead_letters: Arc<DeadLetters>,
    running: FuturesUnordered<BoxFuture<'static, Copied>>,
}

impl Copies {
    pub(super) fn new(group: Group, delay_queues: Arc<DelayQueues>, dead_letters: Arc<DeadLetters>) -> Self {
        Self { group, delay_queues, dead_letters, running: FuturesUnordered::new() }
    }

    /// Stores a copy for the group, which is not delivered before `after` has passed and the facts' own time has come.
    pub(super) fn copy(&mut self, item: Item, facts: Facts, after: Duration, answer: Option<Asker>) {
        let (queues, group, message) = (self.delay_queues.clone(), self.group.clone(), item.message.clone());
        self.run(item, answer, async move { queues.copy_to_group(&group, &message, facts, after).await });
    }

    /// Stores a dead letter.
    pub(super) fn dead_letter(&mut self, item: Item, rejection: Rejection, answer: Option<Asker>) {
        let (letters, group, message) = (self.dead_letters.clone(), self.group.clone(), item.message.clone());
        let (facts, attempts) = (Facts { attempt: 1, ..item.facts.clone() }, item.attempt);
        self.run(
            item,
            answer,
            async move { letters.store(&group, &message, &facts, attempts, rejection).await },
        );
    }

    /// A copy runs in its own task: it may hold the control channel, and the member waits for that channel before it
    /// leaves.
    fn run(
        &mut self,
        item: Item,
        answer: Option<Asker>,
        copied: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let copied = AbortOnDropHandle::new(tokio::spawn(copied));
        self.running.push(Box::pin(async move {
            let given_up =
                |error| Err(Error::new(ErrorKind::Internal, "a copy was cancelled").because(error));
            let result = copied.await.unwrap_or_else(given_up);
            Copied { item, answer, result }
        }));
    }

    /// Waits for the end of a copy; `None` when there is none in progress.
    pub(super) async fn next(&mut self) -> Option<Copied> {
        self.running.next().await
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Gives up all copies in progress.
    pub(super) fn clear(&mut self) {
        self.running.clear();
    }
}
