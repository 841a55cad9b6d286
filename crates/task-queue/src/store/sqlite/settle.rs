//! Settles leases with many resolutions per statement; each is refused unless its worker still holds that same
//! lease, which the fence identifies.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::{aside, db, error::is_refusal};
use crate::{
    Error, ErrorKind, Result,
    bounds::LONGEST,
    store::{Resolution, Settled, Settlement, ceil_ms, now_ms},
};

const ROWS: usize = 100;
/// The number of attempts kept of one task: the newest. One text holds them all, and each attempt rewrites it.
const ATTEMPTS: usize = 50;
/// The maximum number of bytes kept of an error's text, in the record and in each attempt.
const ERROR: usize = 4096;

/// Replaces a result above the cap by a note; the task itself has succeeded. Cuts an error's text above the cap, with
/// a note.
pub(super) fn cap(mut settlement: Settlement, max_result: usize) -> Settlement {
    if let Resolution::Succeed(Ok(result)) = &settlement.resolution
        && result.len() > max_result
    {
        let text = format!(
            "the task succeeded but its result of {} bytes exceeds the limit of {}: return a reference instead",
            result.len(),
            max_result
        );
        settlement.resolution = Resolution::Succeed(Err(text));
    }
    if let Some(error) = settlement.attempt.as_mut().and_then(|attempt| attempt.error.as_mut())
        && error.len() > ERROR
    {
        let cut = error.floor_char_boundary(ERROR);
        let left = error.len() - cut;
        error.truncate(cut);
        error.push_str(&format!(" … ({left} bytes more were not kept)"));
    }
    settlement
}

/// Whether a settled task may wait for a worker again.
pub(super) fn queues_again(settlement: &Settlement) -> bool {
    matches!(settlement.resolution, Resolution::Retry { .. } | Resolution::Release)
}

/// Returns the SQL for a task's attempts plus one more (a JSON text), and for the count of attempts dropped for it.
pub(super) fn with_attempt(attempt: &str) -> (String, String) {
    let attempts = format!(
        "CASE WHEN json_array_length(tasks.attempts) < {ATTEMPTS} THEN json_insert(tasks.attempts, '$[#]', {attempt}) \
         ELSE json_insert((SELECT json_group_array(json(value) ORDER BY key) FROM json_each(tasks.attempts) \
         WHERE key > json_array_length(tasks.attempts) - {ATTEMPTS}), '$[#]', {attempt}) END"
    );
    (attempts, format!("dropped + max(0, json_array_length(tasks.attempts) + 1 - {ATTEMPTS})"))
}

/// Returns the SQL for the time that a record is kept. An earlier build may have stored a time that overflows any
/// sum, so it is limited.
pub(super) fn result_ttl() -> String {
    format!("min(result_ttl, {})", LONGEST.as_millis())
}

/// Returns one answer for each settlement, and an error for each one that cannot be recorded.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    settlements: &[Settlement],
    dead_ttl: i64,
) -> Result<Vec<Result<Settled>>> {
    let settling = |error| db("settling tasks", error);
    let mut answers = Vec::with_capacity(settlements.len());
    for rows in settlements.chunks(ROWS) {
        match update(connection, rows, dead_ttl).await {
            Ok(recorded) => answers.extend(recorded.into_iter().map(Ok)),
            Err(error) if is_refusal(&error) => {
                for one in rows {
                    answers.push(alone(connection, one, dead_ttl).await.map_err(settling)?);
                }
            }
            Err(error) => return Err(settling(error)),
        }
    }
    Ok(answers)
}

/// Settles one task in its own statement; if the store refuses it, the task is marked as dead.
async fn alone(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    dead_ttl: i64,
) -> Result<Result<Settled>, sqlx::Error> {
    let error = match update(connection, std::slice::from_ref(settlement), dead_ttl).await {
        Ok(recorded) => return Ok(Ok(recorded[0])),
        Err(error) if is_refusal(&error) => error,
        Err(error) => return Err(error),
    };
    let held: Option<i64> = sqlx::query_scalar(
        "SELECT seq FROM tasks WHERE id = ? AND worker = ? AND fence = ? AND state = 'running'",
    )
    .bind(settlement.id)
    .bind(settlement.worker)
    .bind(settlement.fence)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(seq) = held else { return Ok(Ok(Settled::Fenced)) };
    let doing = match (&settlement.resolution, settlement.attempt.as_ref().and_then(|a| a.error.as_deref())) {
        (Resolution::Succeed(_), _) => "to record that it succeeded".to_owned(),
        (_, Some(error)) => format!("to record that it ended with `{error}`"),
        (_, None) => "to take it back".to_owned(),
    };
    aside::set(connection, seq, &doing, &error, dead_ttl).await?;
    let text = format!("task {} is set aside as dead: the store refused {doing}", settlement.id);
    Ok(Err(Error::new(ErrorKind::Refused, text).because(error)))
}

async fn update(
    connection: &mut SqliteConnection,
    settlements: &[Settlement],
    dead_ttl: i64,
) -> Result<Vec<Settled>, sqlx::Error> {
    let now = now_ms();
    let mut query = QueryBuilder::<Sqlite>::new(
        "WITH v (id, worker, fence, state, due, counts, result, error, attempt) AS (",
    );
    query.push_values(settlements, |mut row, settlement| {
        let error = settlement.attempt.as_ref().and_then(|attempt| attempt.error.as_deref());
        let (state, due, counts, result, error) = match &settlement.resolution {
            Resolution::Succeed(Ok(result)) => ("succeeded", None, false, Some(result.as_str()), None),
            Resolution::Succeed(Err(note)) => ("succeeded", None, false, None, Some(note.as_str())),
            Resolution::Retry { due, counts } => {
                let due = ceil_ms(*due);
                (if due > now { "scheduled" } else { "queued" }, Some(due), *counts, None, error)
            }
            Resolution::DeadLetter => ("dead", None, true, None, error),
            Resolution::Cancel => ("cancelled", None, false, None, error),
            Resolution::Release => ("queued", None, false, None, None),
        };
        let attempt =
            settlement.attempt.as_ref().map(|attempt| serde_json::to_string(attempt).expect("plain data"));
        row.push_bind(settlement.id)
            .push_bind(settlement.worker)
            .push_bind(settlement.fence)
            .push_bind(state)
            .push_bind(due)
            .push_bind(counts)
            .push_bind(result)
            .push_bind(error)
            .push_bind(attempt);
    });
    let (attempts, dropped) = with_attempt("json(w.attempt)");
    // A cancellation of the running task takes precedence over another run, but never over an end.
    query.push(
        "), w AS (SELECT v.*, CASE WHEN t.cancel AND v.state IN ('queued', 'scheduled') THEN 'cancelled' \
         ELSE v.state END AS becomes FROM v JOIN tasks t ON t.id = v.id) \
         UPDATE tasks SET state = w.becomes, due = coalesce(w.due, tasks.due), errors = tasks.errors + w.counts, \
         result = w.result, error = coalesce(w.error, tasks.error), attempts = CASE WHEN w.attempt IS NULL THEN attempts ELSE ",
    );
    query.push(attempts).push(" END, dropped = CASE WHEN w.attempt IS NULL THEN dropped ELSE ").push(dropped);
    query.push(" END, finished = CASE WHEN w.becomes IN ('queued', 'scheduled') THEN NULL ELSE ");
    query.push_bind(now);
    query.push(" END, keep_until = CASE WHEN w.becomes IN ('queued', 'scheduled') THEN NULL ELSE ");
    query.push_bind(now).push(" + CASE w.becomes WHEN 'dead' THEN ").push_bind(dead_ttl);
    query.push(" ELSE ").push(result_ttl());
    query.push(
        " END END FROM w WHERE tasks.id = w.id AND tasks.worker = w.worker AND tasks.fence = w.fence \
         AND tasks.state = 'running' RETURNING tasks.id, tasks.fence",
    );
    let rows = query.build().fetch_all(connection).await?;
    let held: HashSet<(Uuid, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let settled =
        settlements.iter().map(|settlement| match held.contains(&(settlement.id, settlement.fence)) {
            true => Settled::Recorded,
            false => Settled::Fenced,
        });
    Ok(settled.collect())
}

/// Puts the tasks of a worker with an expired lease back in their queue and counts a crash for each; a task at its
/// crash cap becomes dead, a cancelled one ends as cancelled. Returns the state of each, with its name and queue.
pub(super) async fn crash(
    connection: &mut SqliteConnection,
    worker: Uuid,
    template: &str,
    error: &str,
    dead_ttl: i64,
    seq: Option<i64>,
) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    let (attempts, dropped) = with_attempt(
        "json_set(json(?2), '$.fence', fence, '$.started', \
         strftime('%Y-%m-%dT%H:%M:%fZ', started / 1000.0, 'unixepoch'))",
    );
    let ttl = result_ttl();
    let only = aside::only(seq);
    let query = format!(
        "UPDATE tasks SET crashes = crashes + 1, error = ?1, attempts = {attempts}, dropped = {dropped}, \
         state = CASE WHEN cancel THEN 'cancelled' WHEN crashes + 1 >= max_crashes THEN 'dead' ELSE 'queued' END, \
         finished = CASE WHEN cancel OR crashes + 1 >= max_crashes THEN ?3 END, \
         keep_until = CASE WHEN cancel THEN ?3 + {ttl} WHEN crashes + 1 >= max_crashes THEN ?3 + ?5 END \
         WHERE state = 'running' AND worker = ?4{only} RETURNING state, name, queue"
    );
    sqlx::query_as(AssertSqlSafe(query))
        .bind(error)
        .bind(template)
        .bind(now_ms())
        .bind(worker)
        .bind(dead_ttl)
        .fetch_all(connection)
        .await
}
