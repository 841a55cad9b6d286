//! Implements read access through the pool of readers.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Encode, QueryBuilder, Row, Sqlite, Type};
use uuid::Uuid;

use super::{SqliteStore, db, rows};
use crate::{
    Result,
    store::{
        Filter, QueueStats, Reply, State, TaskKind, TaskQuery, TaskRecord, Waiting, WorkerRecord, now_ms,
    },
};

impl TaskQuery for SqliteStore {
    fn get(&self, id: Uuid) -> Reply<'_, Option<TaskRecord>> {
        Box::pin(async move {
            // A record whose time to live is over is not returned, even before housekeeping deletes it.
            let row =
                sqlx::query("SELECT * FROM tasks WHERE id = ? AND (keep_until IS NULL OR keep_until > ?)")
                    .bind(id)
                    .bind(now_ms())
                    .fetch_optional(&self.readers)
                    .await
                    .map_err(|error| db("reading a task", error))?;
            row.as_ref().map(rows::task).transpose()
        })
    }

    fn ended(&self, ids: Vec<Uuid>) -> Reply<'_, Vec<Uuid>> {
        Box::pin(async move {
            let mut ended = Vec::new();
            for some in ids.chunks(500) {
                let mut query = QueryBuilder::<Sqlite>::new(
                    "SELECT id FROM tasks WHERE state IN ('scheduled', 'queued', 'running') AND id",
                );
                one_of(&mut query, some.to_vec());
                let open: HashSet<Uuid> = query
                    .build_query_scalar()
                    .fetch_all(&self.readers)
                    .await
                    .map_err(|error| db("reading which tasks have ended", error))?
                    .into_iter()
                    .collect();
                ended.extend(some.iter().filter(|id| !open.contains(id)));
            }
            Ok(ended)
        })
    }

    fn list(&self, filter: Filter) -> Reply<'_, Vec<TaskRecord>> {
        Box::pin(async move {
            let mut query =
                QueryBuilder::<Sqlite>::new("SELECT * FROM tasks WHERE (keep_until IS NULL OR keep_until > ");
            query.push_bind(now_ms()).push(")");
            if let Some(state) = filter.state {
                // Written into the text, not bound: SQLite uses a partial index only for a query whose text
                // contains the state.
                query.push(format!(" AND state = '{state}'"));
            }
            for (column, value) in [("queue", filter.queue), ("name", filter.name)] {
                if let Some(value) = value {
                    query.push(format!(" AND {column} = ")).push_bind(value);
                }
            }
            query.push(match filter.state {
                Some(State::Scheduled) => " ORDER BY due, seq LIMIT ",
                _ => " ORDER BY seq DESC LIMIT ",
            });
            query.push_bind(filter.limit);
            let found = query.build().fetch_all(&self.readers).await;
            found.map_err(|error| db("listing tasks", error))?.iter().map(rows::task).collect()
        })
    }

    fn stats(&self) -> Reply<'_, Vec<QueueStats>> {
        Box::pin(async move {
            let finished = "SELECT queue, state, count(*) AS tasks FROM tasks \
                            WHERE state IN ('succeeded', 'cancelled', 'expired') GROUP BY queue, state";
            self.count(&format!("{DEPTHS} UNION ALL {finished}")).await
        })
    }

    fn depths(&self) -> Reply<'_, Vec<QueueStats>> {
        Box::pin(self.count(DEPTHS))
    }

    fn workers(&self) -> Reply<'_, Vec<WorkerRecord>> {
        Box::pin(self.read_workers())
    }

    fn waiting(&self) -> Reply<'_, Vec<Waiting>> {
        Box::pin(self.read_waiting())
    }

    fn kinds(&self) -> Reply<'_, Vec<TaskKind>> {
        Box::pin(self.read_kinds())
    }

    fn patience(&self) -> Duration {
        self.options.patience
    }
}

/// Counts tasks from the partial indexes, state by state, without reading finished tasks.
pub(super) const DEPTHS: &str = "\
    SELECT queue, 'queued' AS state, count(*) AS tasks FROM tasks WHERE state = 'queued' GROUP BY queue \
    UNION ALL SELECT queue, 'scheduled', count(*) FROM tasks WHERE state = 'scheduled' GROUP BY queue \
    UNION ALL SELECT queue, 'running', count(*) FROM tasks WHERE state = 'running' GROUP BY queue \
    UNION ALL SELECT queue, 'dead', count(*) FROM tasks WHERE state = 'dead' GROUP BY queue";

impl SqliteStore {
    async fn count(&self, counts: &str) -> Result<Vec<QueueStats>> {
        let counting = |error| db("counting tasks", error);
        let mut queues = BTreeMap::<String, QueueStats>::new();
        let counts = sqlx::query(AssertSqlSafe(counts)).fetch_all(&self.readers).await.map_err(counting)?;
        for row in &counts {
            let stats = queues.entry(row.get("queue")).or_default();
            let state: State = row.get::<String, _>("state").parse()?;
            stats.counts.insert(state, row.get::<i64, _>("tasks").unsigned_abs());
        }
        let paused: Vec<String> = sqlx::query_scalar("SELECT queue FROM paused")
            .fetch_all(&self.readers)
            .await
            .map_err(counting)?;
        for queue in paused {
            queues.entry(queue).or_default().paused = true;
        }
        Ok(queues.into_iter().map(|(queue, stats)| QueueStats { queue, ..stats }).collect())
    }

    pub(super) async fn read_workers(&self) -> Result<Vec<WorkerRecord>> {
        let found = sqlx::query(
            "SELECT *, (SELECT count(*) FROM tasks WHERE state = 'running' AND worker = workers.id) AS running \
             FROM workers WHERE lease_until > ? ORDER BY started",
        )
        .bind(now_ms())
        .fetch_all(&self.readers)
        .await;
        found.map_err(|error| db("listing workers", error))?.iter().map(rows::worker).collect()
    }
}

/// Writes ` IN (?, ?, ..)` with the values.
pub(super) fn one_of<T>(query: &mut QueryBuilder<Sqlite>, values: Vec<T>)
where
    T: for<'q> Encode<'q, Sqlite> + Type<Sqlite>,
{
    query.push(" IN (");
    for (index, value) in values.into_iter().enumerate() {
        query.push(if index == 0 { "" } else { ", " }).push_bind(value);
    }
    query.push(")");
}
