//! One row that the store refuses stops no other: what a statement would change at once is then changed row by row,
//! and a row that is refused alone is set aside as dead with the reason.

use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::is_refusal;
use crate::store::now_ms;

/// A change of all rows that it means, or of the one named by its `seq`.
pub(super) type Change<'a, T> = &'a (
        dyn for<'c> Fn(&'c mut SqliteConnection, Option<i64>) -> BoxFuture<'c, Result<Vec<T>, sqlx::Error>>
            + Send
            + Sync
    );

/// Makes the change; row by row should one of `rows` (a condition on tasks) be refused.
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

/// The rows that a condition means.
pub(super) async fn matching(connection: &mut SqliteConnection, rows: &str) -> Result<Vec<i64>, sqlx::Error> {
    let query = format!("SELECT seq FROM tasks WHERE {rows}");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(connection).await
}

/// Sets one task aside: dead, with the reason, and with what it holds as far as that can be read.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    seq: i64,
    doing: &str,
    reason: &(dyn std::fmt::Display + Sync),
    dead_ttl: i64,
) -> Result<(), sqlx::Error> {
    let error = format!("set aside: the store refused {doing}: {reason}");
    tracing::error!(seq, error, "a task was set aside");
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
        // Not even that: it stays as it is, and the others go on all the same.
        Err(error) if is_refusal(&error) => {
            tracing::error!(seq, %error, "a task cannot be set aside");
            Ok(())
        }
        done => done.map(|_| ()),
    }
}

/// ` AND seq = N` for one row.
pub(super) fn only(seq: Option<i64>) -> String {
    seq.map_or_else(String::new, |seq| format!(" AND seq = {seq}"))
}
