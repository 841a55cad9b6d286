//! Isolates rows that the store refuses: when a statement over many rows fails, it changes them row by row, and a
//! row that is refused alone is marked as dead with the reason.

use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::is_refusal;
use crate::store::now_ms;

/// A change of all matching rows, or of the one row with the given `seq`.
pub(super) type Change<'a, T> = &'a (
        dyn for<'c> Fn(&'c mut SqliteConnection, Option<i64>) -> BoxFuture<'c, Result<Vec<T>, sqlx::Error>>
            + Send
            + Sync
    );

/// Makes the change for all rows; row by row if one of `rows` (a condition on tasks) is refused.
pub(super) async fn isolated<T>(
    connection: &mut SqliteConnection,
    doing: &str,
    rows: &str,
    dead_ttl: i64,
    change: Change<'_, T>,
) -> Result<Vec<T>, sqlx::Error> {
    match change(connection, None).await {
        Err(error) if is_refusal(&error) => {}
        done => return done,
    }
    let mut made = Vec::new();
    for seq in matching(connection, rows).await? {
        match change(connection, Some(seq)).await {
            Err(error) if is_refusal(&error) => set(connection, seq, doing, &error, dead_ttl).await?,
            done => made.extend(done?),
        }
    }
    Ok(made)
}

/// Returns the `seq` of the rows that match a condition.
pub(super) async fn matching(connection: &mut SqliteConnection, rows: &str) -> Result<Vec<i64>, sqlx::Error> {
    let query = format!("SELECT seq FROM tasks WHERE {rows}");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(connection).await
}

/// Marks one task as dead with the reason, and keeps its data as far as it can be read.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    seq: i64,
    doing: &str,
    reason: &(dyn std::fmt::Display + Sync),
    dead_ttl: i64,
) -> Result<(), sqlx::Error> {
    let error = format!("set aside: the store refused {doing}: {reason}");
    tracing::error!(seq, error, "a task was set aside as dead");
    let done = sqlx::query(
        "UPDATE tasks SET state = 'dead', finished = ?1, keep_until = ?1 + ?2, error = ?3, \
         attempts = CASE WHEN json_valid(attempts) THEN attempts ELSE '[]' END, \
         headers = CASE WHEN json_valid(headers) THEN headers ELSE '{}' END WHERE seq = ?4",
    )
    .bind(now_ms())
    .bind(dead_ttl)
    .bind(error)
    .bind(seq)
    .execute(connection)
    .await;
    match done {
        // Even this change was refused: the row stays as it is, and the other rows are processed nevertheless.
        Err(error) if is_refusal(&error) => {
            tracing::error!(seq, %error, "a task cannot be set aside");
            Ok(())
        }
        done => done.map(|_| ()),
    }
}

/// Returns ` AND seq = N` for one row, else nothing.
pub(super) fn only(seq: Option<i64>) -> String {
    seq.map_or_else(String::new, |seq| format!(" AND seq = {seq}"))
}
