//! Implements the operator's commands: cancel, pause, purge, replay and drop.

use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::{SqliteStore, db, query::one_of, settle::result_ttl, writer::Touched};
use crate::{
    Error, ErrorKind, Result,
    store::{Channel, Reply, State, TaskControl, now_ms},
};

impl TaskControl for SqliteStore {
    fn cancel(&self, id: Uuid) -> Reply<'_, State> {
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let was = cancel(connection, id).await.map_err(|error| db("cancelling a task", error))?;
                let was =
                    was.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no task {id}")))?;
                Ok((was.parse()?, &[Channel::Ended, Channel::Stops] as Touched))
            })
        }))
    }

    fn pause(&self, queue: &str, paused: bool) -> Reply<'_, ()> {
        let queue = queue.to_owned();
        let statement = if paused {
            "INSERT INTO paused (queue) VALUES (?) ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM paused WHERE queue = ?"
        };
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let done = sqlx::query(statement).bind(queue).execute(connection).await;
                done.map_err(|error| db("pausing or resuming a queue", error))?;
                Ok(((), &[Channel::Work] as Touched))
            })
        }))
    }

    fn purge(&self, queues: &[String]) -> Reply<'_, u64> {
        let mut query =
            QueryBuilder::<Sqlite>::new("DELETE FROM tasks WHERE state IN ('queued', 'scheduled')");
        if !queues.is_empty() {
            query.push(" AND queue");
            one_of(&mut query, queues.to_vec());
        }
        self.change(query, "purging queues", &[Channel::Ended])
    }

    fn replay(&self, ids: &[Uuid]) -> Reply<'_, u64> {
        // OR IGNORE: when another unfinished task holds the unique key meanwhile, this task stays dead.
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE OR IGNORE tasks SET state = 'queued', errors = 0, crashes = 0, cancel = 0, finished = NULL, \
             keep_until = NULL, expires = NULL, due = ",
        );
        query.push_bind(now_ms()).push(" WHERE state = 'dead'");
        only(&mut query, ids);
        self.change(query, "replaying dead tasks", &[Channel::Work])
    }

    fn drop_dead(&self, ids: &[Uuid]) -> Reply<'_, u64> {
        let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM tasks WHERE state = 'dead'");
        only(&mut query, ids);
        self.change(query, "dropping dead tasks", &[])
    }
}

impl SqliteStore {
    fn change(
        &self,
        mut query: QueryBuilder<Sqlite>,
        doing: &'static str,
        touched: Touched,
    ) -> Reply<'_, u64> {
        Box::pin(self.writer.alone(move |connection| -> BoxFuture<'_, Result<(u64, Touched)>> {
            Box::pin(async move {
                let done = query.build().execute(connection).await.map_err(|error| db(doing, error))?;
                Ok((done.rows_affected(), touched))
            })
        }))
    }
}

fn only(query: &mut QueryBuilder<Sqlite>, ids: &[Uuid]) {
    if !ids.is_empty() {
        query.push(" AND id");
        one_of(query, ids.to_vec());
    }
}

/// Cancels a waiting task or flags a running one; returns the state before the call.
async fn cancel(connection: &mut SqliteConnection, id: Uuid) -> Result<Option<String>, sqlx::Error> {
    let was: Option<String> = sqlx::query_scalar("SELECT state FROM tasks WHERE id = ?")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    let ttl = result_ttl();
    sqlx::query(AssertSqlSafe(format!(
        "UPDATE tasks SET cancel = 1, state = 'cancelled', finished = ?1, keep_until = ?1 + {ttl}, \
         error = 'cancelled before it started' WHERE id = ?2 AND state IN ('queued', 'scheduled')"
    )))
    .bind(now_ms())
    .bind(id)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE tasks SET cancel = 1 WHERE id = ? AND state = 'running'")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(was)
}
