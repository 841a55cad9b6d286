//! Stores schedules and their firings: a step is applied only if the schedule is unchanged since the scheduler read
//! it.

use sqlx::{Row, SqliteConnection};

use super::{SqliteStore, db, enqueue, rows, writer::Touched};
use crate::{
    Result,
    store::{Channel, Firing, Reply, ScheduleRecord, ScheduleStore},
};

impl ScheduleStore for SqliteStore {
    fn put_schedule(&self, schedule: ScheduleRecord) -> Reply<'_, ()> {
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                put(connection, schedule).await?;
                Ok(((), &[Channel::Schedules] as Touched))
            })
        }))
    }

    fn remove_schedule(&self, name: &str) -> Reply<'_, bool> {
        let name = name.to_owned();
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let done =
                    sqlx::query("DELETE FROM schedules WHERE name = ?").bind(name).execute(connection).await;
                let done = done.map_err(|error| db("removing a schedule", error))?;
                Ok((done.rows_affected() > 0, &[Channel::Schedules] as Touched))
            })
        }))
    }

    fn schedules(&self) -> Reply<'_, Vec<ScheduleRecord>> {
        Box::pin(async move {
            let found = sqlx::query("SELECT * FROM schedules ORDER BY name").fetch_all(&self.readers).await;
            let rows = found.map_err(|error| db("listing schedules", error))?;
            // One unreadable plan does not stop the others; adding the schedule again repairs it.
            let read = rows.iter().filter_map(|row| match rows::schedule(row) {
                Ok(schedule) => Some(schedule),
                Err(error) => {
                    let name: &str = row.get("name");
                    tracing::error!(schedule = name, %error, "a schedule cannot be read: remove or replace it");
                    None
                }
            });
            Ok(read.collect())
        })
    }

    fn fire(&self, firings: Vec<Firing>) -> Reply<'_, Vec<u64>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(firings.len());
            for firing in firings {
                // Checked here, so that a task too large for the store fails alone and its schedule keeps its time.
                firing.tasks.iter().try_for_each(|(_, task)| enqueue::check(task, self.options.max_args))?;
                let step = self.writer.alone(move |connection| {
                    Box::pin(async move {
                        let fired = fire(connection, &firing).await?;
                        let touched: Touched = if fired > 0 {
                            &[Channel::Work, Channel::Schedules]
                        } else {
                            &[Channel::Schedules]
                        };
                        Ok((fired, touched))
                    })
                });
                answers.push(step.await?);
            }
            Ok(answers)
        })
    }
}

async fn put(connection: &mut SqliteConnection, schedule: ScheduleRecord) -> Result<()> {
    let storing = |error| db("storing a schedule", error);
    let known = sqlx::query("SELECT * FROM schedules WHERE name = ?")
        .bind(&schedule.name)
        .fetch_optional(&mut *connection)
        .await
        .map_err(storing)?;
    if let Some(row) = &known
        && rows::schedule(row).is_ok_and(|known| known.same_plan(&schedule))
    {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO schedules (name, plan, timing, next) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (name) DO UPDATE SET plan = ?2, timing = ?3, next = ?4",
    )
    .bind(&schedule.name)
    .bind(serde_json::to_string(&schedule).expect("plain data"))
    .bind(&schedule.timing)
    .bind(schedule.next.map(|at| at.as_millisecond()))
    .execute(connection)
    .await
    .map_err(storing)?;
    Ok(())
}

async fn fire(connection: &mut SqliteConnection, firing: &Firing) -> Result<u64> {
    let firing_failed = |error| db("firing a schedule", error);
    let last = firing.tasks.last().map(|(nominal, _)| nominal.as_millisecond());
    let moved = sqlx::query(
        "UPDATE schedules SET next = ?1, last = coalesce(?2, last) WHERE name = ?3 AND next = ?4 AND timing = ?5 \
         RETURNING fired",
    )
    .bind(firing.next.map(|at| at.as_millisecond()))
    .bind(last)
    .bind(&firing.schedule)
    .bind(firing.seen.as_millisecond())
    .bind(&firing.timing)
    .fetch_optional(&mut *connection)
    .await
    .map_err(firing_failed)?;
    let Some(moved) = moved else { return Ok(0) };
    if let Some(now) = firing.set_back {
        sqlx::query("DELETE FROM firings WHERE schedule = ? AND nominal > ?")
            .bind(&firing.schedule)
            .bind(now.as_millisecond())
            .execute(&mut *connection)
            .await
            .map_err(firing_failed)?;
    }
    let mut fresh = Vec::with_capacity(firing.tasks.len());
    for (nominal, task) in &firing.tasks {
        let noted = sqlx::query(
            "INSERT INTO firings (schedule, nominal, task) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&firing.schedule)
        .bind(nominal.as_millisecond())
        .bind(task.id)
        .execute(&mut *connection)
        .await
        .map_err(firing_failed)?;
        if noted.rows_affected() == 1 {
            fresh.push(task.clone());
        }
    }
    let enqueued = enqueue::enqueue(connection, &fresh).await?;
    let stored = enqueued.iter().filter(|task| !task.duplicate).count() as u64;
    sqlx::query("UPDATE schedules SET fired = ? WHERE name = ?")
        .bind(moved.get::<i64, _>(0) + stored as i64)
        .bind(&firing.schedule)
        .execute(connection)
        .await
        .map_err(firing_failed)?;
    Ok(stored)
}
