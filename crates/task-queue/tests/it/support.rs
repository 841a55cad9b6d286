//! Shared test code: a store in its own directory, a worker that runs during the test, and waiting for conditions.

use std::{path::PathBuf, sync::Arc, time::Duration};

use task_queue::{
    TaskClient, Worker,
    store::{
        TaskStore,
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

/// Much longer than any step takes; only a failing test waits this long.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) store: Arc<dyn TaskStore>,
    pub(crate) client: TaskClient,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut SqliteOptions)) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let mut options = SqliteOptions::new(folder.path().join("tasks.db"));
        change(&mut options);
        let store: Arc<dyn TaskStore> = Arc::new(SqliteStore::open(options).await.expect("a store"));
        let client = TaskClient::new(store.clone());
        Self { folder, store, client }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("tasks.db")
    }

    pub(crate) fn work(&self, set_up: impl FnOnce(Worker) -> Worker) -> Running {
        let worker = set_up(Worker::new(self.store.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let handle = tokio::spawn(worker.run_until(async {
            let _ = stopped.await;
        }));
        Running { stop: Some(stop), handle }
    }
}

/// A worker on the test's runtime.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    handle: JoinHandle<task_queue::Result<()>>,
}

impl Running {
    pub(crate) async fn stop(mut self) -> task_queue::Result<()> {
        drop(self.stop.take());
        tokio::time::timeout(SOON, self.handle)
            .await
            .expect("the worker stops")
            .expect("the worker does not panic")
    }
}

/// Repeats the check until the condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
