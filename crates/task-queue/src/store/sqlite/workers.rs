//! Keeps workers and their leases: one row per worker, so that a heartbeat costs the same however many tasks the
//! worker holds.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{SqliteStore, aside, claim, db, enqueue, kinds, settle};
use crate::{
    Result,
    store::{
        Attempt, Channel, Claim, Claimed, Enqueued, LeaseStatus, Maintenance, NewTask, Notifier, Outcome,
        Renewal, Reply, Settled, Settlement, TaskKind, TaskQueue, WorkerInfo, from_ms, now_ms,
    },
};

/// The maximum number of old records deleted in one transaction, so that it never holds the write lock for long.
const PRUNED: i64 = 1000;
/// The maximum number of such transactions in one round of housekeeping. Other processes write between them, and
/// the next round deletes the rest.
const PRUNINGS: usize = 200;
/// The time that fired nominal times are kept. Advancing a schedule prevents a second firing; these records also
/// prevent it after a schedule was edited or restored.
const FIRINGS_KEPT_MS: i64 = 30 * 86_400_000;

impl TaskQueue for SqliteStore {
    fn enqueue(&self, tasks: Vec<NewTask>) -> Reply<'_, Vec<Enqueued>> {
        Box::pin(async move {
            tasks.iter().try_for_each(|task| enqueue::check(task, self.options.max_args))?;
            self.writer.enqueue(tasks).await
        })
    }

    fn publish(&self, kinds: Vec<TaskKind>) -> Reply<'_, ()> {
        self.publish_kinds(kinds)
    }

    fn register(&self, worker: WorkerInfo) -> Reply<'_, ()> {
        let lease = self.options.lease_ms();
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let now = now_ms();
                sqlx::query("INSERT INTO workers (id, info, name, started, heartbeat, lease_until) VALUES (?, ?, ?, ?, ?, ?)")
                    .bind(worker.id)
                    .bind(serde_json::to_string(&worker).expect("plain data"))
                    .bind(worker.name)
                    .bind(now)
                    .bind(now)
                    .bind(now + lease)
                    .execute(connection)
                    .await
                    .map_err(|error| db("registering the worker", error))?;
                Ok(((), &[] as _))
            })
        }))
    }

    fn lease(&self) -> Duration {
        self.options.lease
    }

    fn renew(&self, worker: Uuid) -> Reply<'_, Renewal> {
        let lease = self.options.lease_ms();
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let renewal = renew(connection, worker, lease).await;
                Ok((renewal.map_err(|error| db("renewing the worker's lease", error))?, &[] as _))
            })
        }))
    }

    fn retire(&self, worker: Uuid) -> Reply<'_, u64> {
        Box::pin(self.writer.alone(move |connection| {
            Box::pin(async move {
                let released = retire(connection, worker).await;
                Ok((released.map_err(|error| db("retiring the worker", error))?, &[Channel::Work] as _))
            })
        }))
    }

    fn claim(&self, claim: Claim) -> Reply<'_, Claimed> {
        Box::pin(self.writer.claim(claim))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Vec<Result<Settled>>> {
        let count = settlements.len();
        let settlements = settlements
            .into_iter()
            .map(|settlement| settle::cap(settlement, self.options.max_result))
            .collect();
        Box::pin(async move {
            match self.writer.settle(settlements).await {
                Ok(answers) => answers,
                Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
            }
        })
    }

    fn maintain(&self) -> Reply<'_, Maintenance> {
        let (dead_ttl, patience) = (self.options.dead_ttl_ms(), self.options.patience_ms());
        Box::pin(async move {
            let now = now_ms();
            let mut unknown = self.dead_letter_unknown(now).await?;
            if !self.needs_tending(now).await? {
                return Ok(unknown);
            }
            let mut maintenance = self
                .writer
                .alone(move |connection| {
                    Box::pin(async move {
                        let maintenance = maintain(connection, dead_ttl, patience).await;
                        let maintenance = maintenance
                            .map_err(|error| db("running housekeeping in the task store", error))?;
                        Ok((maintenance, &[Channel::Work, Channel::Ended] as _))
                    })
                })
                .await?;
            for _ in 0..PRUNINGS {
                let pruned = self
                    .writer
                    .alone(move |connection| {
                        Box::pin(async move {
                            let pruned = prune(connection, now).await;
                            Ok((pruned.map_err(|error| db("deleting old task records", error))?, &[] as _))
                        })
                    })
                    .await?;
                maintenance.pruned += pruned;
                if pruned < PRUNED as u64 {
                    break;
                }
            }
            maintenance.unknown = unknown.unknown;
            maintenance.dead.append(&mut unknown.dead);
            Ok(maintenance)
        })
    }

    fn notifier(&self) -> &Notifier {
        &self.notifier
    }
}

impl SqliteStore {
    /// Checks with a read whether housekeeping has work to do, so that idle workers take no write lock.
    async fn needs_tending(&self, now: i64) -> Result<bool> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM workers WHERE lease_until <= ?1) \
             OR EXISTS (SELECT 1 FROM tasks WHERE keep_until IS NOT NULL AND keep_until <= ?1) \
             OR EXISTS (SELECT 1 FROM tasks WHERE expires IS NOT NULL AND expires <= ?1 AND started IS NULL \
                        AND state IN ('queued', 'scheduled')) \
             OR EXISTS (SELECT 1 FROM firings WHERE nominal <= ?1 - ?2) \
             OR EXISTS (SELECT 1 FROM kinds WHERE seen <= ?1 - ?3)",
        )
        .bind(now)
        .bind(FIRINGS_KEPT_MS)
        .bind(self.options.patience_ms())
        .fetch_one(&self.readers)
        .await
        .map_err(|error| db("checking whether the task store needs housekeeping", error))
    }
}

async fn renew(connection: &mut SqliteConnection, worker: Uuid, lease: i64) -> Result<Renewal, sqlx::Error> {
    let now = now_ms();
    // An expired lease is not renewed: other workers may be claiming its tasks.
    let renewed = sqlx::query(
        "UPDATE workers SET heartbeat = ?1, lease_until = ?1 + ?2 WHERE id = ?3 AND lease_until > ?1",
    )
    .bind(now)
    .bind(lease)
    .bind(worker)
    .execute(&mut *connection)
    .await?;
    if renewed.rows_affected() == 0 {
        return Ok(Renewal::Lost);
    }
    let cancelled =
        sqlx::query_scalar("SELECT id FROM tasks WHERE state = 'running' AND worker = ? AND cancel")
            .bind(worker)
            .fetch_all(connection)
            .await?;
    Ok(Renewal::LeaseStatus(LeaseStatus { cancelled }))
}

async fn retire(connection: &mut SqliteConnection, worker: Uuid) -> Result<u64, sqlx::Error> {
    let released = sqlx::query("UPDATE tasks SET state = 'queued' WHERE state = 'running' AND worker = ?")
        .bind(worker)
        .execute(&mut *connection)
        .await?;
    kinds::off_the_list(connection, worker, now_ms()).await?;
    Ok(released.rows_affected())
}

async fn maintain(
    connection: &mut SqliteConnection,
    dead_ttl: i64,
    patience: i64,
) -> Result<Maintenance, sqlx::Error> {
    let now = now_ms();
    let mut maintenance =
        Maintenance { expired: claim::expire(connection, now, dead_ttl).await?, ..Maintenance::default() };
    let silent = sqlx::query("SELECT id, name, lease_until FROM workers WHERE lease_until <= ?")
        .bind(now)
        .fetch_all(&mut *connection)
        .await?;
    for worker in &silent {
        recover(connection, worker, dead_ttl, &mut maintenance).await?;
    }
    sqlx::query("DELETE FROM firings WHERE nominal <= ? - ?")
        .bind(now)
        .bind(FIRINGS_KEPT_MS)
        .execute(&mut *connection)
        .await?;
    // Live workers have registered their kinds for longer than the patience: mark these kinds as seen now.
    sqlx::query(
        "UPDATE kinds SET seen = ?1 WHERE seen <= ?1 - ?2 AND name IN (SELECT value FROM workers, \
         json_each(CASE WHEN json_valid(info) THEN info ELSE '{}' END, '$.tasks') WHERE lease_until > ?1)",
    )
    .bind(now)
    .bind(patience)
    .execute(&mut *connection)
    .await?;
    kinds::forget(connection, now, patience).await?;
    Ok(maintenance)
}

async fn prune(connection: &mut SqliteConnection, now: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM tasks WHERE seq IN (SELECT seq FROM tasks WHERE keep_until IS NOT NULL AND keep_until <= ?1 \
         ORDER BY keep_until LIMIT ?2)",
    )
    .bind(now)
    .bind(PRUNED)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Removes a worker with an expired lease and puts its tasks back in their queue.
async fn recover(
    connection: &mut SqliteConnection,
    worker: &SqliteRow,
    dead_ttl: i64,
    maintenance: &mut Maintenance,
) -> Result<(), sqlx::Error> {
    let (worker, name, lapsed): (Uuid, String, i64) =
        (worker.get("id"), worker.get("name"), worker.get("lease_until"));
    let error = format!("worker {name} crashed or did not renew its lease while it held the task");
    let template = Attempt {
        fence: 0,
        worker: name.clone(),
        started: from_ms(0),
        ended: from_ms(lapsed),
        outcome: Outcome::Crashed,
        error: Some(error.clone()),
    };
    let template = serde_json::to_string(&template).expect("plain data");
    let rows = format!("state = 'running' AND worker = x'{}'", worker.simple());
    let handed = aside::isolated(connection, "to hand it on", &rows, dead_ttl, &move |connection, seq| {
        let (template, error) = (template.clone(), error.clone());
        Box::pin(async move { settle::crash(connection, worker, &template, &error, dead_ttl, seq).await })
    })
    .await?;
    kinds::off_the_list(connection, worker, lapsed).await?;
    let tasks = handed.len() as u64;
    let mut dead_lettered = 0;
    for (_, task, queue) in handed.into_iter().filter(|(state, ..)| state == "dead") {
        dead_lettered += 1;
        *maintenance.dead.entry((task, queue)).or_default() += 1;
    }
    maintenance.dead_lettered += dead_lettered;
    maintenance.recovered += tasks - dead_lettered;
    tracing::warn!(%worker, name, tasks, dead_lettered, "put the tasks of a dead worker back in their queues");
    Ok(())
}
