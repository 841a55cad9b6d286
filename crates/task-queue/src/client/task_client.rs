//! Defines the client of a store, which enqueues tasks and returns handles of them.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use super::{AsyncResult, waiter::Waiter};
use crate::{
    Result, store,
    store::{NewTask, TaskStore},
};

/// Enqueues tasks and reads their state. Cheap to clone.
#[derive(Clone)]
pub struct TaskClient {
    waiter: Arc<Waiter>,
}

impl fmt::Debug for TaskClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskClient").field("store", self.store()).finish_non_exhaustive()
    }
}

impl TaskClient {
    /// Creates a client of an open store.
    pub fn new(store: Arc<dyn TaskStore>) -> Self {
        Self { waiter: Arc::new(Waiter::new(store)) }
    }

    /// Opens the store of a URL and creates a client of it.
    ///
    /// # Errors
    /// The errors of [`store::open`].
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self::new(store::open(url).await?))
    }

    /// The client's store.
    pub fn store(&self) -> &Arc<dyn TaskStore> {
        self.waiter.store()
    }

    /// Stores tasks that were built by hand or from calls, many in one transaction; returns their handles in the
    /// same order.
    ///
    /// # Errors
    /// The store's error; then none of the tasks is stored.
    pub async fn send(&self, tasks: Vec<NewTask>) -> Result<Vec<AsyncResult<serde_json::Value>>> {
        let labels: Vec<_> = tasks.iter().map(|task| (task.name.clone(), task.queue.clone())).collect();
        let stored = self.store().enqueue(tasks).await?;
        for ((task, queue), _) in labels.into_iter().zip(&stored).filter(|(_, stored)| !stored.duplicate) {
            metrics::counter!("tasks_enqueued", "task" => task, "queue" => queue).increment(1);
        }
        Ok(stored.into_iter().map(|task| AsyncResult::new(self.waiter.clone(), task)).collect())
    }

    /// Returns a handle for any task by its id.
    pub fn result<T>(&self, id: Uuid) -> AsyncResult<T> {
        AsyncResult::new(self.waiter.clone(), store::Enqueued { id, duplicate: false })
    }
}
