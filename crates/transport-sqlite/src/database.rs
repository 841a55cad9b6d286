//! The open database: one writer, a few reader connections, and the signals to the tasks of this process. It knows no
//! feature.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::config::Storage;
use super::error::{Sql, closed, lost};
use super::file::DatabaseFile;
use super::processes::Processes;
use super::tail_cache::TailCache;
use super::wake::Wake;
use super::write_queue::{Job, WriteQueue};
use event_transport::error::{Error, Result};

/// A database file that this process has open.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) file: DatabaseFile,
    pub(super) storage: Storage,
    pub(super) queue: WriteQueue,
    pub(super) readers: SqlitePool,
    pub(super) tail: TailCache,
    pub(super) processes: Processes,
    pub(super) wake: Wake,
    /// Cancelled when the last handle and the last subscription are dropped.
    pub(super) closing: CancellationToken,
    /// Cancelled when the writer has flushed and closed the file.
    pub(super) finished: CancellationToken,
}

impl Database {
    /// Called when the writer task has panicked: every operation on this file returns that the bus is closed, until the
    /// file is opened again.
    pub(super) fn break_off(&self) {
        self.queue.close();
        self.closing.cancel();
        self.processes.leave();
        self.finished.cancel();
        self.wake.subscriptions();
    }

    /// Converts an SQLite error to this crate's error.
    pub(super) fn explain(&self, error: &sqlx::Error, operation: &'static str) -> Error {
        self.file.explain(error, operation)
    }

    /// Lets every group in every process look for due redeliveries.
    pub(super) fn wake_everywhere(&self) {
        self.wake.groups();
        self.processes.call();
    }

    /// Runs `job` in its own write transaction, which commits without an fsync.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let database = Arc::clone(self);
        let job: Job = Box::new(move |connection| {
            Box::pin(async move {
                let run = async {
                    let connection = connection?;
                    database.file.still_intact().map_err(|gone| lost(&gone, operation))?;
                    let done = transact(connection, job).await;
                    let done = done.map_err(|error| database.explain(&error, operation))?;
                    database.file.intact().map_err(|gone| lost(&gone, operation))?;
                    Ok(done)
                };
                let _ = answer.send(run.await);
            })
        });
        self.queue.job(job);
        match result.await {
            Err(_) => Err(closed(operation)),
            Ok(result) => result.map_err(|error: Error| error.during(operation)),
        }
    }

    /// Measures a round trip through the writer to the file.
    pub(super) async fn ping(self: &Arc<Self>) -> Result<Duration> {
        let start = Instant::now();
        let job = self.write("ping", |connection| {
            Box::pin(async move {
                sqlx::query("SELECT 1 FROM consumer_group LIMIT 1").execute(connection).await.map(drop)
            })
        });
        job.await?;
        Ok(start.elapsed())
    }
}

async fn transact<T>(
    connection: &mut SqliteConnection,
    job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>>,
) -> Sql<T> {
    let run = async |sql: &'static str, connection: &mut SqliteConnection| {
        sqlx::query(sql).execute(connection).await
    };
    run("BEGIN IMMEDIATE", connection).await?;
    let result = match job(connection).await {
        Ok(value) => run("COMMIT", connection).await.map(|_| value),
        Err(error) => Err(error),
    };
    if result.is_err() {
        // This fails when the error has already ended the transaction.
        let _ = run("ROLLBACK", connection).await;
    }
    result
}
