//! Taking turns at the write lock, of which a file has one for all its processes.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;

use super::error::{Sql, is_busy};

/// Runs `job` in a write transaction; its failure undoes it.
pub(super) async fn transact<T>(
    connection: &mut SqliteConnection,
    patience: Duration,
    job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>>,
) -> Sql<T> {
    let run = async |sql: &'static str, connection: &mut SqliteConnection| {
        sqlx::query(sql).execute(connection).await
    };
    take_turn(connection, patience).await?;
    let result = match job(connection).await {
        Ok(value) => run("COMMIT", connection).await.map(|_| value),
        Err(error) => Err(error),
    };
    if result.is_err() {
        // Fails when the error has ended the transaction already.
        let _ = run("ROLLBACK", connection).await;
    }
    result
}

/// Begins a transaction, waiting for the write lock in many short steps.
///
/// SQLite's own waiting sleeps up to 100 ms between looks: beside a process that writes without a pause it would
/// hardly ever find the lock free.
pub(super) async fn take_turn(connection: &mut SqliteConnection, patience: Duration) -> Sql<()> {
    let give_up = tokio::time::Instant::now() + patience;
    loop {
        match sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await {
            Err(error) if is_busy(&error) && tokio::time::Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(200..1500))).await;
            }
            done => return done.map(drop),
        }
    }
}
