//! Waits for the ends of tasks: one query per notification serves all waiters.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    Result,
    store::{Channel, TaskStore},
};

/// The interval of queries without a notification, in case one was lost.
const POLL: Duration = Duration::from_secs(1);

type Waiting = HashMap<Uuid, Vec<oneshot::Sender<()>>>;

/// A store, and the callers that wait for the ends of its tasks.
#[derive(Debug)]
pub(super) struct Waiter {
    store: Arc<dyn TaskStore>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Waiting,
    /// Whether the watching tokio task runs; it ends when no caller waits.
    watched: bool,
}

impl Waiter {
    pub(super) fn new(store: Arc<dyn TaskStore>) -> Self {
        Self { store, shared: Arc::default() }
    }

    pub(super) fn store(&self) -> &Arc<dyn TaskStore> {
        &self.store
    }

    /// Completes when the task has ended (or is unknown).
    pub(super) async fn wait(&self, id: Uuid) -> Result<()> {
        let store = &self.store;
        let (done, ended) = oneshot::channel();
        let start = {
            let mut shared = lock(&self.shared);
            shared.waiting.entry(id).or_default().push(done);
            !std::mem::replace(&mut shared.watched, true)
        };
        if start {
            tokio::spawn(watch(store.clone(), self.shared.clone()));
        } else {
            // The watcher queries the store when a task ends; this task may have ended before.
            if !store.ended(vec![id]).await?.is_empty() {
                return Ok(());
            }
        }
        // If the watcher was dropped (its runtime shut down), this caller queries the store itself.
        if ended.await.is_err() {
            let mut notices = store.notifier().watch(Channel::Ended);
            while store.ended(vec![id]).await?.is_empty() {
                let _ = tokio::time::timeout(POLL, notices.changed()).await;
            }
        }
        Ok(())
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Ends the watch however the tokio task ends: the remaining waiters then find their channel closed and query the
/// store themselves.
struct Watch {
    shared: Arc<Mutex<Shared>>,
    over: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over {
            let mut shared = lock(&self.shared);
            shared.watched = false;
            shared.waiting.clear();
        }
    }
}

async fn watch(store: Arc<dyn TaskStore>, shared: Arc<Mutex<Shared>>) {
    let mut watch = Watch { shared, over: false };
    let mut notices = store.notifier().watch(Channel::Ended);
    loop {
        let open: Vec<Uuid> = {
            let mut shared = lock(&watch.shared);
            shared.waiting.retain(|_, waiters| {
                waiters.retain(|waiter| !waiter.is_closed());
                !waiters.is_empty()
            });
            if shared.waiting.is_empty() {
                shared.watched = false;
                drop(shared);
                watch.over = true;
                return;
            }
            shared.waiting.keys().copied().collect()
        };
        match store.ended(open).await {
            Ok(ended) => {
                let mut shared = lock(&watch.shared);
                for waiter in ended.iter().filter_map(|id| shared.waiting.remove(id)).flatten() {
                    let _ = waiter.send(());
                }
            }
            Err(error) => tracing::warn!(%error, "querying ended tasks failed, trying again"),
        }
        let _ = tokio::time::timeout(POLL, notices.changed()).await;
    }
}
