//! Stores the known task kinds, and dead-letters due tasks of unknown kinds.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::{SqliteStore, db, writer::Touched};
use crate::{
    Result,
    store::{Channel, Maintenance, Reply, TaskKind, Waiting, from_ms, now_ms},
};

/// The shortest time between two searches of a process for unknown kinds, because a search reads the index of all
/// due tasks.
const CENSUS_MS: i64 = 60_000;
/// The kinds of live workers. The kinds of workers of an earlier build are recorded only here, not in `kinds`.
const LIVE: &str = "SELECT value FROM workers, json_each(CASE WHEN json_valid(info) THEN info ELSE '{}' END, '$.tasks') \
     WHERE lease_until > ?1";

impl SqliteStore {
    pub(super) fn publish_kinds(&self, kinds: Vec<TaskKind>) -> Reply<'_, ()> {
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                for kind in kinds {
                    sqlx::query(
                        "INSERT INTO kinds (name, kind, seen) VALUES (?1, ?2, ?3) \
                         ON CONFLICT (name) DO UPDATE SET kind = ?2, seen = ?3",
                    )
                    .bind(&kind.name)
                    .bind(serde_json::to_string(&kind).expect("plain data"))
                    .bind(now_ms())
                    .execute(&mut *connection)
                    .await
                    .map_err(|error| db("publishing task kinds", error))?;
                }
                Ok(((), &[] as Touched))
            })
        }))
    }

    pub(super) async fn read_kinds(&self) -> Result<Vec<TaskKind>> {
        let kinds: Vec<String> = sqlx::query_scalar("SELECT kind FROM kinds ORDER BY name")
            .fetch_all(&self.readers)
            .await
            .map_err(|error| db("listing task kinds", error))?;
        Ok(kinds.iter().filter_map(|kind| serde_json::from_str(kind).ok()).collect())
    }

    pub(super) async fn read_waiting(&self) -> Result<Vec<Waiting>> {
        let reading = |error| db("counting waiting tasks", error);
        let now = now_ms();
        let rows = sqlx::query(
            "SELECT queue, name, count(*) AS tasks, min(due) AS oldest FROM tasks WHERE state = 'queued' \
             GROUP BY queue, name",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(reading)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let known: BTreeSet<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT name FROM kinds UNION {LIVE}")))
                .bind(now)
                .fetch_all(&self.readers)
                .await
                .map_err(reading)?
                .into_iter()
                .collect();
        let workers = self.read_workers().await?;
        let waiting = rows.iter().map(|row| {
            let (queue, name): (String, String) = (row.get("queue"), row.get("name"));
            let takes = workers
                .iter()
                .filter(|worker| worker.info.queues.contains(&queue) && worker.info.tasks.contains(&name));
            Waiting {
                tasks: row.get::<i64, _>("tasks").unsigned_abs(),
                oldest: from_ms(row.get("oldest")),
                workers: takes.count() as u64,
                known: known.contains(&name),
                queue,
                name,
            }
        });
        Ok(waiting.collect())
    }

    /// Dead-letters due tasks that have waited longer than the patience for a worker with their kind; runs only
    /// every [`CENSUS_MS`].
    pub(super) async fn dead_letter_unknown(&self, now: i64) -> Result<Maintenance> {
        let patience = self.options.patience_ms();
        let again = now + CENSUS_MS.min(patience);
        // A time far in the future was stored before the clock was set back.
        let due = |next: i64| next <= now || next > now + CENSUS_MS;
        let turn =
            self.census.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| due(next).then_some(again));
        if turn.is_err() {
            return Ok(Maintenance::default());
        }
        let late = |waiting: &Waiting| !waiting.known && waiting.oldest.as_millisecond() <= now - patience;
        let unknown: Vec<_> = self.read_waiting().await?.into_iter().filter(late).collect();
        let mut maintenance = Maintenance::default();
        for Waiting { queue, name, .. } in unknown {
            let kind = (name.clone(), queue.clone());
            let text = format!(
                "no worker has registered `{name}` for {}: start a worker that registers it and replay this task",
                settings::duration::in_days(self.options.patience)
            );
            let dead_ttl = self.options.dead_ttl_ms();
            let dead_lettered = self
                .writer
                .alone(move |connection| {
                    Box::pin(async move {
                        let query = format!(
                            "UPDATE tasks SET state = 'dead', finished = ?1, keep_until = ?1 + ?2, error = ?3 \
                             WHERE state = 'queued' AND queue = ?4 AND name = ?5 AND due <= ?6 \
                             AND name NOT IN (SELECT name FROM kinds) AND name NOT IN ({LIVE})"
                        );
                        let done = sqlx::query(sqlx::AssertSqlSafe(query))
                            .bind(now)
                            .bind(dead_ttl)
                            .bind(&text)
                            .bind(&queue)
                            .bind(&name)
                            .bind(now - patience)
                            .execute(connection)
                            .await
                            .map_err(|error| db("dead-lettering tasks of unknown kinds", error))?;
                        let tasks = done.rows_affected();
                        if tasks > 0 {
                            tracing::error!(task = name, queue, tasks, "tasks are dead: {text}");
                        }
                        Ok((tasks, &[Channel::Ended] as Touched))
                    })
                })
                .await?;
            if dead_lettered > 0 {
                maintenance.unknown += dead_lettered;
                maintenance.dead.insert(kind, dead_lettered);
            }
        }
        Ok(maintenance)
    }
}

/// Deletes kinds that no worker has registered for longer than the patience.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    now: i64,
    patience: i64,
) -> Result<(), sqlx::Error> {
    let query = format!("DELETE FROM kinds WHERE seen <= ?1 - ?2 AND name NOT IN ({LIVE})");
    sqlx::query(sqlx::AssertSqlSafe(query)).bind(now).bind(patience).execute(connection).await?;
    Ok(())
}

/// Removes a worker; its kinds were last seen at `seen`.
pub(super) async fn off_the_list(
    connection: &mut SqliteConnection,
    worker: Uuid,
    seen: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE kinds SET seen = max(seen, ?1) WHERE name IN (SELECT value FROM workers, \
         json_each(CASE WHEN json_valid(info) THEN info ELSE '{}' END, '$.tasks') WHERE workers.id = ?2)",
    )
    .bind(seen)
    .bind(worker)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM workers WHERE id = ?").bind(worker).execute(connection).await?;
    Ok(())
}
