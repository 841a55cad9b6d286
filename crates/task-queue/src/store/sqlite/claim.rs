//! Handing out: due tasks by priority, due time and age, leased to a worker under a fresh fence.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::db;
use crate::{
    Error, ErrorKind, Result,
    store::{Claim, Claimed, Leased, from_ms, now_ms},
};

/// Scheduled tasks moved to their queue in one step; the rest follow with the next claims.
const PROMOTED: i64 = 10_000;

pub(super) async fn claim(connection: &mut SqliteConnection, claim: &Claim) -> Result<Claimed> {
    let now = now_ms();
    let (live, expiring, scheduled, queued) =
        look(connection, claim, now).await.map_err(|error| db("looking for due tasks", error))?;
    if !live {
        let text = format!(
            "worker {} has lost its lease: it was silent too long, its tasks went to others",
            claim.worker
        );
        return Err(Error::new(ErrorKind::Fenced, text));
    }
    if expiring.is_some_and(|at| at <= now) {
        expire(connection, now).await.map_err(|error| db("ending expired tasks", error))?;
    }
    let mut next_due = scheduled;
    let mut waiting = queued;
    if scheduled.is_some_and(|at| at <= now) {
        next_due = promote(connection, now).await.map_err(|error| db("queueing due tasks", error))?;
        waiting = true;
    }
    let tasks = if waiting && claim.limit > 0 && !claim.queues.is_empty() {
        lease(connection, claim, now).await.map_err(|error| db("leasing tasks", error))?
    } else {
        Vec::new()
    };
    Ok(Claimed { tasks, next_due: next_due.map(from_ms) })
}

/// One statement that says which of the following ones have anything to do.
async fn look(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
) -> Result<(bool, Option<i64>, Option<i64>, bool), sqlx::Error> {
    sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM workers WHERE id = ? AND lease_until > ?), \
         (SELECT min(expires) FROM tasks WHERE expires IS NOT NULL AND state IN ('queued', 'scheduled')), \
         (SELECT min(due) FROM tasks WHERE state = 'scheduled'), \
         EXISTS (SELECT 1 FROM tasks WHERE state = 'queued')",
    )
    .bind(claim.worker)
    .bind(now)
    .fetch_one(connection)
    .await
}

pub(super) async fn expire(connection: &mut SqliteConnection, now: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE tasks SET state = 'expired', finished = ?1, keep_until = ?1 + result_ttl, \
         error = 'expired before a worker started it' \
         WHERE expires IS NOT NULL AND expires <= ?1 AND state IN ('queued', 'scheduled')",
    )
    .bind(now)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Moves what fell due to its queue; answers when the next falls due.
async fn promote(connection: &mut SqliteConnection, now: i64) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query(
        "UPDATE tasks SET state = 'queued' WHERE seq IN \
         (SELECT seq FROM tasks WHERE state = 'scheduled' AND due <= ? ORDER BY due LIMIT ?)",
    )
    .bind(now)
    .bind(PROMOTED)
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar("SELECT min(due) FROM tasks WHERE state = 'scheduled'").fetch_one(connection).await
}

/// Takes the first rows of each queue's index and leases the best of them: never a scan, never a sort of a queue.
async fn lease(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
) -> Result<Vec<Leased>, sqlx::Error> {
    let limit = i64::try_from(claim.limit).unwrap_or(i64::MAX);
    let mut query =
        QueryBuilder::<Sqlite>::new("UPDATE tasks SET state = 'running', fence = fence + 1, worker = ");
    query
        .push_bind(claim.worker)
        .push(", started = ")
        .push_bind(now)
        .push(" WHERE seq IN (SELECT seq FROM (");
    for (index, queue) in claim.queues.iter().enumerate() {
        query.push(if index == 0 { "" } else { " UNION ALL " });
        query.push("SELECT * FROM (SELECT seq, priority, due FROM tasks WHERE state = 'queued' AND queue = ");
        query.push_bind(queue);
        query.push(" AND NOT EXISTS (SELECT 1 FROM paused WHERE paused.queue = ").push_bind(queue);
        query.push(") ORDER BY priority DESC, due, seq LIMIT ").push_bind(limit).push(")");
    }
    query.push(") ORDER BY priority DESC, due, seq LIMIT ").push_bind(limit);
    query.push(
        ") RETURNING seq, id, fence, name, queue, args, kwargs, priority, errors, crashes, max_retries, headers, due, \
         started",
    );
    let mut rows = query.build().fetch_all(connection).await?;
    // RETURNING promises no order.
    rows.sort_by_key(|row| {
        (-row.get::<i64, _>("priority"), row.get::<i64, _>("due"), row.get::<i64, _>("seq"))
    });
    Ok(rows.iter().map(leased).collect())
}

fn leased(row: &SqliteRow) -> Leased {
    let headers: String = row.get("headers");
    Leased {
        id: row.get("id"),
        fence: row.get("fence"),
        name: row.get("name"),
        queue: row.get("queue"),
        args: row.get("args"),
        kwargs: row.get("kwargs"),
        priority: row.get("priority"),
        errors: row.get("errors"),
        crashes: row.get("crashes"),
        max_retries: row.get("max_retries"),
        headers: serde_json::from_str(&headers).unwrap_or_default(),
        due: from_ms(row.get("due")),
        started: from_ms(row.get("started")),
    }
}
