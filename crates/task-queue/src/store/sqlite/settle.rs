//! Ending leases: many verdicts a statement, each refused unless its worker still has that very lease.

use std::collections::HashSet;

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::{SqliteStore, db};
use crate::{
    Result,
    store::{Settlement, Verdict, ceil_ms, now_ms},
};

const ROWS: usize = 100;

impl SqliteStore {
    /// A result above the cap is replaced by a note that says so; the task itself has succeeded.
    pub(super) fn cap_result(&self, mut settlement: Settlement) -> Settlement {
        if let Verdict::Succeed(Ok(result)) = &settlement.verdict
            && result.len() > self.options.max_result
        {
            let text = format!(
                "the task succeeded but its result of {} bytes is above the {} kept: return a reference instead",
                result.len(),
                self.options.max_result
            );
            settlement.verdict = Verdict::Succeed(Err(text));
        }
        settlement
    }
}

/// Whether a settled task waits for a worker again.
pub(super) fn queues_again(settlement: &Settlement) -> bool {
    matches!(settlement.verdict, Verdict::Again { .. } | Verdict::Release)
}

pub(super) async fn settle(
    connection: &mut SqliteConnection,
    settlements: &[Settlement],
    dead_ttl: i64,
) -> Result<Vec<bool>> {
    let mut held = HashSet::with_capacity(settlements.len());
    for rows in settlements.chunks(ROWS) {
        update(connection, rows, dead_ttl, &mut held)
            .await
            .map_err(|error| db("recording how tasks ended", error))?;
    }
    Ok(settlements.iter().map(|settlement| held.contains(&(settlement.id, settlement.fence))).collect())
}

async fn update(
    connection: &mut SqliteConnection,
    settlements: &[Settlement],
    dead_ttl: i64,
    held: &mut HashSet<(Uuid, i64)>,
) -> Result<(), sqlx::Error> {
    let now = now_ms();
    let mut query = QueryBuilder::<Sqlite>::new(
        "WITH v (id, worker, fence, state, due, counts, result, error, attempt) AS (",
    );
    query.push_values(settlements, |mut row, settlement| {
        let error = settlement.attempt.as_ref().and_then(|attempt| attempt.error.as_deref());
        let (state, due, counts, result, error) = match &settlement.verdict {
            Verdict::Succeed(Ok(result)) => ("succeeded", None, false, Some(result.as_str()), None),
            Verdict::Succeed(Err(note)) => ("succeeded", None, false, None, Some(note.as_str())),
            Verdict::Again { due, counts } => {
                let due = ceil_ms(*due);
                (if due > now { "scheduled" } else { "queued" }, Some(due), *counts, None, error)
            }
            Verdict::Bury => ("dead", None, true, None, error),
            Verdict::Cancel => ("cancelled", None, false, None, error),
            Verdict::Release => ("queued", None, false, None, None),
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
    // A stop that was asked for while the task ran wins over another run, never over an end.
    query.push(
        "), w AS (SELECT v.*, CASE WHEN t.cancel AND v.state IN ('queued', 'scheduled') THEN 'cancelled' \
         ELSE v.state END AS becomes FROM v JOIN tasks t ON t.id = v.id) \
         UPDATE tasks SET state = w.becomes, due = coalesce(w.due, tasks.due), errors = tasks.errors + w.counts, \
         result = w.result, error = coalesce(w.error, tasks.error), \
         attempts = CASE WHEN w.attempt IS NULL THEN attempts ELSE json_insert(attempts, '$[#]', json(w.attempt)) END, \
         finished = CASE WHEN w.becomes IN ('queued', 'scheduled') THEN NULL ELSE ",
    );
    query.push_bind(now);
    query.push(" END, keep_until = CASE WHEN w.becomes IN ('queued', 'scheduled') THEN NULL ELSE ");
    query.push_bind(now).push(" + CASE w.becomes WHEN 'dead' THEN ").push_bind(dead_ttl);
    query.push(
        " ELSE result_ttl END END FROM w WHERE tasks.id = w.id AND tasks.worker = w.worker AND tasks.fence = w.fence \
         AND tasks.state = 'running' RETURNING tasks.id, tasks.fence",
    );
    let rows = query.build().fetch_all(connection).await?;
    held.extend(rows.iter().map(|row| (row.get::<Uuid, _>(0), row.get::<i64, _>(1))));
    Ok(())
}
