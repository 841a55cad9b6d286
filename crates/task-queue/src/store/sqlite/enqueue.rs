//! Stores new tasks with many rows per statement; for a duplicate id or unique key it returns the existing task.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::db;
use crate::{
    Error, ErrorKind, Result,
    bounds::{NAME, ttl_ms},
    store::{Enqueued, NewTask, ceil_ms, now_ms},
};

/// Rows per statement: SQLite allows more variables, but more rows gain little.
const ROWS: usize = 100;

/// Refuses an invalid task before it reaches the writer, so that it does not fail the other tasks of a batch.
pub(super) fn check(task: &NewTask, max_args: usize) -> Result<()> {
    if task.name.is_empty() || task.queue.is_empty() {
        return Err(Error::invalid("a task needs a name and a queue"));
    }
    let unique = task.unique.as_deref().unwrap_or_default();
    for (what, text) in [("name", &*task.name), ("queue", &*task.queue), ("unique key", unique)] {
        if text.len() > NAME {
            let text = format!("the {what} of a task has {} bytes and may have at most {NAME}", text.len());
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
    }
    let headers: usize = task.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let size = task.args.len() + task.kwargs.as_ref().map_or(0, String::len);
    for (what, size) in [("arguments", size), ("headers", headers)] {
        if size > max_args {
            let text = format!(
                "the {what} of task `{}` have {size} bytes and the store accepts {}: pass a reference instead",
                task.name, max_args
            );
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
    }
    Ok(())
}

pub(super) async fn enqueue(connection: &mut SqliteConnection, tasks: &[NewTask]) -> Result<Vec<Enqueued>> {
    let mut answers = Vec::with_capacity(tasks.len());
    for rows in tasks.chunks(ROWS) {
        insert(connection, rows, &mut answers).await.map_err(|error| db("storing new tasks", error))?;
    }
    Ok(answers)
}

async fn insert(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
    answers: &mut Vec<Enqueued>,
) -> Result<(), sqlx::Error> {
    let now = now_ms();
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO tasks (id, name, queue, state, args, kwargs, priority, created, due, expires, max_retries, \
         max_crashes, unique_key, headers, result_ttl) ",
    );
    query.push_values(tasks, |mut row, task| {
        let due = task.due.map_or(now, ceil_ms).max(0);
        row.push_bind(task.id)
            .push_bind(&task.name)
            .push_bind(&task.queue)
            .push_bind(if due > now { "scheduled" } else { "queued" })
            .push_bind(&task.args)
            .push_bind(&task.kwargs)
            .push_bind(task.priority)
            .push_bind(now)
            .push_bind(due)
            .push_bind(task.expires.map(|at| at.as_millisecond()))
            .push_bind(task.max_retries)
            .push_bind(task.max_crashes)
            .push_bind(&task.unique)
            .push_bind(headers(task))
            .push_bind(ttl_ms(task.result_ttl));
    });
    query.push(" ON CONFLICT DO NOTHING RETURNING id");
    let stored = query.build().fetch_all(&mut *connection).await?;
    if stored.len() == tasks.len() {
        answers.extend(tasks.iter().map(|task| Enqueued { id: task.id, duplicate: false }));
        return Ok(());
    }
    let mut stored: HashMap<Uuid, ()> = stored.iter().map(|row| (row.get(0), ())).collect();
    for task in tasks {
        // Each id is removed when it is seen, so that an id that occurs twice in a batch is new only once.
        let duplicate = stored.remove(&task.id).is_none();
        let id = if duplicate { existing(connection, task).await? } else { task.id };
        answers.push(Enqueued { id, duplicate });
    }
    Ok(())
}

/// Returns the task that holds the unique key, or else the task that has the id.
async fn existing(connection: &mut SqliteConnection, task: &NewTask) -> Result<Uuid, sqlx::Error> {
    let holder: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM tasks WHERE name = ? AND unique_key = ? AND state IN ('queued', 'scheduled', 'running')",
    )
    .bind(&task.name)
    .bind(&task.unique)
    .fetch_optional(connection)
    .await?;
    Ok(holder.unwrap_or(task.id))
}

fn headers(task: &NewTask) -> String {
    if task.headers.is_empty() {
        return "{}".to_owned();
    }
    serde_json::to_string(&task.headers).expect("a map of strings is json")
}
