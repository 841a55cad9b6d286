//! Enqueues tasks: a client of a store, calls with Celery's options, and results awaited through notifications.

mod call;
mod result;
mod waiter;

use std::{
    fmt,
    sync::{Arc, RwLock},
};

use uuid::Uuid;

pub use call::Call;
pub use result::AsyncResult;

use crate::{
    Error, ErrorKind, Result, store,
    store::{NewTask, TaskStore},
    task::TaskContext,
};

static INSTALLED: RwLock<Option<TaskClient>> = RwLock::new(None);

/// Enqueues tasks and reads their state. Cheap to clone.
#[derive(Clone)]
pub struct TaskClient {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn TaskStore>,
    waiter: waiter::Waiter,
}

impl fmt::Debug for TaskClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskClient").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

impl TaskClient {
    /// Creates a client of an open store.
    pub fn new(store: Arc<dyn TaskStore>) -> Self {
        Self { inner: Arc::new(Inner { store, waiter: waiter::Waiter::default() }) }
    }

    /// Opens the store of a URL and creates a client of it.
    ///
    /// # Errors
    /// The errors of [`store::open`].
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self::new(store::open(url).await?))
    }

    /// Installs this client for every call in this process that names no other. A later installation replaces it.
    pub fn install(&self) {
        *INSTALLED.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(self.clone());
    }

    /// Returns the client for a call that names none: the client of the running task's worker, else the installed
    /// one.
    ///
    /// # Errors
    /// [`ErrorKind::NotConfigured`] when neither exists.
    pub fn current() -> Result<Self> {
        if let Some(context) = TaskContext::current() {
            return Ok(context.client().clone());
        }
        INSTALLED.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone().ok_or_else(|| {
            let text = "no task client: call `TaskClient::open(url).await?.install()` at start, or `.on(&client)` on the call";
            Error::new(ErrorKind::NotConfigured, text)
        })
    }

    /// The client's store.
    pub fn store(&self) -> &Arc<dyn TaskStore> {
        &self.inner.store
    }

    /// Stores tasks that were built by hand or from calls, many in one transaction; returns their handles in the
    /// same order.
    ///
    /// # Errors
    /// The store's error; then none of the tasks is stored.
    pub async fn send(&self, tasks: Vec<NewTask>) -> Result<Vec<AsyncResult<serde_json::Value>>> {
        let labels: Vec<_> = tasks.iter().map(|task| (task.name.clone(), task.queue.clone())).collect();
        let stored = self.inner.store.enqueue(tasks).await?;
        for ((task, queue), _) in labels.into_iter().zip(&stored).filter(|(_, stored)| !stored.duplicate) {
            metrics::counter!("tasks_enqueued", "task" => task, "queue" => queue).increment(1);
        }
        Ok(stored.into_iter().map(|task| AsyncResult::new(self.clone(), task)).collect())
    }

    /// Returns a handle for any task by its id.
    pub fn result<T>(&self, id: Uuid) -> AsyncResult<T> {
        AsyncResult::new(self.clone(), store::Enqueued { id, duplicate: false })
    }

    /// Completes when the task has ended.
    pub(crate) async fn ended(&self, id: Uuid) -> Result<()> {
        self.inner.waiter.wait(&self.inner.store, id).await
    }
}
