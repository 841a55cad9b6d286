//! Claims due tasks by priority, due time and age, and leases them to a worker under a new fence.

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{aside, db, error::is_refusal, settle::result_ttl};
use crate::{
    Error, ErrorKind, Result,
    store::{Claim, Claimed, Leased, from_ms, now_ms},
};

/// The maximum number of scheduled tasks that one claim moves to their queue; later claims move the rest.
const PROMOTED: i64 = 10_000;
/// The maximum number of pairs of queue and kind in one statement.
const PAIRS: usize = 32;
/// The condition for tasks whose expiry still applies: once started, a task runs to its end.
const EXPIRING: &str = "expires IS NOT NULL AND started IS NULL AND state IN ('queued', 'scheduled')";

pub(super) async fn claim(
    connection: &mut SqliteConnection,
    claim: &Claim,
    dead_ttl: i64,
) -> Result<Claimed> {
    let now = now_ms();
    let (live, expiring, scheduled, queued) =
        look(connection, claim, now).await.map_err(|error| db("looking for due tasks", error))?;
    if !live {
        let text = format!(
            "worker {} has lost its lease: it sent no heartbeat for too long, other workers may have its tasks",
            claim.worker
        );
        return Err(Error::new(ErrorKind::Fenced, text));
    }
    if expiring.is_some_and(|at| at <= now) {
        expire(connection, now, dead_ttl).await.map_err(|error| db("ending expired tasks", error))?;
    }
    let mut next_due = scheduled;
    let mut waiting = queued;
    if scheduled.is_some_and(|at| at <= now) {
        next_due =
            promote(connection, now, dead_ttl).await.map_err(|error| db("queueing due tasks", error))?;
        waiting = true;
    }
    let tasks = if waiting && claim.limit > 0 {
        lease(connection, claim, now, dead_ttl).await.map_err(|error| db("leasing tasks", error))?
    } else {
        Vec::new()
    };
    Ok(Claimed { tasks, next_due: next_due.map(from_ms) })
}

/// Finds out in one statement which of the following statements have work to do.
async fn look(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
) -> Result<(bool, Option<i64>, Option<i64>, bool), sqlx::Error> {
    sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM workers WHERE id = ? AND lease_until > ?), \
         (SELECT min(expires) FROM tasks WHERE expires IS NOT NULL AND started IS NULL \
          AND state IN ('queued', 'scheduled')), \
         (SELECT min(due) FROM tasks WHERE state = 'scheduled'), \
         EXISTS (SELECT 1 FROM tasks WHERE state = 'queued')",
    )
    .bind(claim.worker)
    .bind(now)
    .fetch_one(connection)
    .await
}

pub(super) async fn expire(
    connection: &mut SqliteConnection,
    now: i64,
    dead_ttl: i64,
) -> Result<u64, sqlx::Error> {
    let rows = format!("{EXPIRING} AND expires <= {now}");
    let counts =
        aside::isolated(connection, "to end it as expired", &rows, dead_ttl, &move |connection, seq| {
            Box::pin(async move {
                let (ttl, only) = (result_ttl(), aside::only(seq));
                let query = format!(
                    "UPDATE tasks SET state = 'expired', finished = ?1, keep_until = ?1 + {ttl}, \
                 error = 'expired before a worker started it' WHERE {EXPIRING} AND expires <= ?1{only}"
                );
                let done = sqlx::query(AssertSqlSafe(query)).bind(now).execute(connection).await?;
                Ok(vec![done.rows_affected()])
            })
        })
        .await?;
    Ok(counts.iter().sum())
}

/// Moves tasks that fell due to their queue; returns the due time of the next scheduled task.
async fn promote(
    connection: &mut SqliteConnection,
    now: i64,
    dead_ttl: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let rows = format!("state = 'scheduled' AND due <= {now} ORDER BY due LIMIT {PROMOTED}");
    aside::isolated(connection, "to queue it", &rows, dead_ttl, &move |connection, seq| {
        Box::pin(async move {
            let only = aside::only(seq);
            let query = format!(
                "UPDATE tasks SET state = 'queued' WHERE seq IN \
                 (SELECT seq FROM tasks WHERE state = 'scheduled' AND due <= ?{only} ORDER BY due LIMIT ?)"
            );
            sqlx::query(AssertSqlSafe(query)).bind(now).bind(PROMOTED).execute(connection).await?;
            Ok(Vec::<()>::new())
        })
    })
    .await?;
    sqlx::query_scalar("SELECT min(due) FROM tasks WHERE state = 'scheduled'").fetch_one(connection).await
}

/// Takes the first rows of each queue and kind from their index and leases the best of them, without a scan,
/// without a sort of a queue, and without a step over kinds that this worker does not claim.
async fn lease(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
    dead_ttl: i64,
) -> Result<Vec<Leased>, sqlx::Error> {
    let mut limit = i64::try_from(claim.limit).unwrap_or(i64::MAX);
    let heads;
    let pairs: Vec<(&str, &str)> = if claim.queues.len() * claim.kinds.len() <= PAIRS {
        let queues = claim.queues.iter();
        queues.flat_map(|queue| claim.kinds.iter().map(move |kind| (queue.as_str(), kind.as_str()))).collect()
    } else {
        // The best n tasks are among those of the n pairs whose first tasks are best.
        limit = limit.min(PAIRS as i64);
        heads = best_heads(connection, claim, limit).await?;
        heads.iter().map(|(queue, kind)| (queue.as_str(), kind.as_str())).collect()
    };
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = taking(claim, now);
    candidates(query.push(" WHERE seq IN ("), &pairs, limit);
    query.push(")").push(TAKEN);
    let mut rows = match query.build().fetch_all(&mut *connection).await {
        Err(error) if is_refusal(&error) => {
            let mut query = QueryBuilder::new("");
            candidates(&mut query, &pairs, limit);
            one_by_one(connection, claim, now, dead_ttl, query).await?
        }
        taken => taken?,
    };
    // RETURNING guarantees no order.
    rows.sort_by_key(|row| {
        (-row.get::<i64, _>("priority"), row.get::<i64, _>("due"), row.get::<i64, _>("seq"))
    });
    let mut tasks = Vec::with_capacity(rows.len());
    for row in &rows {
        match leased(row) {
            Ok(task) => tasks.push(task),
            Err(error) => aside::set(connection, row.get("seq"), "to read it", &error, dead_ttl).await?,
        }
    }
    Ok(tasks)
}

/// Returns the pairs of queue and kind whose first tasks come before those of the other pairs.
async fn best_heads(
    connection: &mut SqliteConnection,
    claim: &Claim,
    limit: i64,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let list = |names: &[String]| serde_json::to_string(names).expect("texts are json");
    sqlx::query_as(
        "SELECT queue.value, kind.value FROM json_each(?) AS queue CROSS JOIN json_each(?) AS kind \
         CROSS JOIN tasks ON tasks.seq = (SELECT seq FROM tasks WHERE state = 'queued' AND queue = queue.value \
         AND name = kind.value ORDER BY priority DESC, due, seq LIMIT 1) \
         WHERE queue.value NOT IN (SELECT queue FROM paused) ORDER BY priority DESC, due, seq LIMIT ?",
    )
    .bind(list(&claim.queues))
    .bind(list(&claim.kinds))
    .bind(limit)
    .fetch_all(connection)
    .await
}

fn taking(claim: &Claim, now: i64) -> QueryBuilder<Sqlite> {
    let mut query =
        QueryBuilder::<Sqlite>::new("UPDATE tasks SET state = 'running', fence = fence + 1, worker = ");
    query.push_bind(claim.worker).push(", started = ").push_bind(now);
    query
}

const TAKEN: &str = " RETURNING seq, id, fence, name, queue, args, kwargs, priority, errors, crashes, max_retries, \
     headers, due, started";

/// Writes the query for the `seq` of the tasks to lease.
fn candidates(query: &mut QueryBuilder<Sqlite>, pairs: &[(&str, &str)], limit: i64) {
    query.push("SELECT seq FROM (");
    for (index, (queue, kind)) in pairs.iter().enumerate() {
        query.push(if index == 0 { "" } else { " UNION ALL " });
        query.push("SELECT * FROM (SELECT seq, priority, due FROM tasks WHERE state = 'queued' AND queue = ");
        query.push_bind((*queue).to_owned()).push(" AND name = ").push_bind((*kind).to_owned());
        query
            .push(" AND NOT EXISTS (SELECT 1 FROM paused WHERE paused.queue = ")
            .push_bind((*queue).to_owned());
        query.push(") ORDER BY priority DESC, due, seq LIMIT ").push_bind(limit).push(")");
    }
    query.push(") ORDER BY priority DESC, due, seq LIMIT ").push_bind(limit);
}

/// Leases each candidate in its own statement, because the store refused one of them; that one is marked as dead.
async fn one_by_one(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
    dead_ttl: i64,
    mut candidates: QueryBuilder<Sqlite>,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let seqs: Vec<i64> = candidates.build_query_scalar().fetch_all(&mut *connection).await?;
    let mut rows = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let mut query = taking(claim, now);
        query.push(" WHERE seq = ").push_bind(seq).push(TAKEN);
        match query.build().fetch_all(&mut *connection).await {
            Err(error) if is_refusal(&error) => {
                aside::set(connection, seq, "to lease it", &error, dead_ttl).await?;
            }
            taken => rows.extend(taken?),
        }
    }
    Ok(rows)
}

/// # Errors
/// When a column holds a value that no build of this crate wrote; the error names the column.
fn leased(row: &SqliteRow) -> Result<Leased, sqlx::Error> {
    let headers: String = row.try_get("headers")?;
    Ok(Leased {
        id: row.try_get("id")?,
        fence: row.try_get("fence")?,
        name: row.try_get("name")?,
        queue: row.try_get("queue")?,
        args: row.try_get("args")?,
        kwargs: row.try_get("kwargs")?,
        priority: row.try_get("priority")?,
        errors: row.try_get("errors")?,
        crashes: row.try_get("crashes")?,
        max_retries: row.try_get("max_retries")?,
        headers: serde_json::from_str(&headers).unwrap_or_default(),
        due: from_ms(row.try_get("due")?),
        started: from_ms(row.try_get("started")?),
    })
}
