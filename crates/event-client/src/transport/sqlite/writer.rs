//! The writer task of a database file: all work that waits at the same time shares one transaction and one fsync.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::{Notify, oneshot};

use super::claim::Claim;
use super::connection::{self, Database, Script};
use super::error::{Sql, closed, lost};
use super::publish::{self, Publish};
use super::settle::{self, Settled};
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};

/// The highest number and size in bytes of waiting publishes; further publishes are refused.
const MAX_WAITING: usize = 65_536;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// The highest number of publishes in one transaction.
const MAX_BATCH: usize = 8192;
/// The pause before settlements that could not be stored are tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The queue of work for the writer.
#[derive(Default)]
pub(super) struct Inbox {
    work: Mutex<Work>,
    wake: Notify,
}

#[derive(Default)]
struct Work {
    publishes: Vec<Publish>,
    bytes: usize,
    claims: Vec<Claim>,
    settles: Vec<Settled>,
    renewals: Vec<Renewal>,
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Extends the leases of `members` to the time `until`; the answer lists the members that still exist.
pub(super) struct Renewal {
    pub(super) members: Vec<i64>,
    pub(super) until: i64,
    pub(super) answer: Answer<Vec<i64>>,
}

/// Other work, which is rare and has its own transaction.
type Job = Box<dyn for<'c> FnOnce(Result<&'c mut SqliteConnection>) -> BoxFuture<'c, ()> + Send>;

impl Inbox {
    fn with<R>(&self, wake: bool, add: impl FnOnce(&mut Work) -> R) -> R {
        let result = add(&mut self.work.lock().expect("not poisoned"));
        if wake {
            self.wake.notify_one();
        }
        result
    }

    /// Closes the queue and drops the waiting work: dropping its answers makes them report that the bus is closed.
    pub(super) fn close(&self) {
        drop(self.with(false, |work| std::mem::replace(work, Work { closed: true, ..Work::default() })));
    }

    /// Whether the queue is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.with(false, |work| work.closed)
    }

    /// Adds a publish.
    pub(super) fn publish(&self, publish: Publish) {
        let refused = self.with(true, |work| {
            if work.closed {
                return Some((publish, closed("publish")));
            }
            if work.publishes.len() >= MAX_WAITING || work.bytes >= MAX_WAITING_BYTES {
                return Some((
                    publish,
                    Error::new(
                        ErrorKind::Full,
                        "too many publishes wait for the disk; await some confirmations first",
                    )
                    .during("publish"),
                ));
            }
            work.bytes += publish.record.len();
            work.publishes.push(publish);
            None
        });
        if let Some((publish, error)) = refused {
            let _ = publish.answer.send(Err(error));
        }
    }

    /// Adds a claim; a closed queue drops it without an answer.
    pub(super) fn claim(&self, claim: Claim) {
        self.with(true, |work| {
            if !work.closed {
                work.claims.push(claim);
            }
        });
    }

    /// Adds a settlement; a closed queue drops it without an answer.
    pub(super) fn settle(&self, settled: Settled) {
        self.with(true, |work| {
            if !work.closed {
                work.settles.push(settled);
            }
        });
    }

    /// Renews the leases of `members` until the time `until`. The confirmation lists the members that still exist.
    pub(super) fn renew(&self, members: Vec<i64>, until: i64) -> Confirm<Vec<i64>> {
        let (answer, confirm) = Confirm::channel();
        self.with(true, |work| {
            if !work.closed {
                work.renewals.push(Renewal { members, until, answer });
            }
        });
        confirm
    }
}

impl Database {
    /// Runs `job` in its own write transaction, which commits without an fsync.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let database = Arc::clone(self);
        let job: Job = Box::new(move |connection| {
            Box::pin(async move {
                let run = async {
                    let connection = connection?;
                    database.still_intact().map_err(|gone| lost(&gone, operation))?;
                    let done = transact(connection, job).await;
                    let done = done.map_err(|error| database.explain(&error, operation))?;
                    database.intact().map_err(|gone| lost(&gone, operation))?;
                    Ok(done)
                };
                let _ = answer.send(run.await);
            })
        });
        self.inbox.with(true, |work| {
            if !work.closed {
                work.jobs.push_back(job);
            }
        });
        match result.await {
            Err(_) => Err(closed(operation)),
            Ok(result) => result.map_err(|error: Error| error.during(operation)),
        }
    }
}

async fn transact<T>(
    connection: &mut SqliteConnection,
    job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>>,
) -> Sql<T> {
    let run = async |sql: &'static str, connection: &mut SqliteConnection| {
        sqlx::query(sql).execute(connection).await
    };
    run("BEGIN IMMEDIATE", connection).await?;
    let result = match job(connection).await {
        Ok(value) => run("COMMIT", connection).await.map(|_| value),
        Err(error) => Err(error),
    };
    if result.is_err() {
        // This fails when the error has already ended the transaction.
        let _ = run("ROLLBACK", connection).await;
    }
    result
}

/// The writer task.
pub(super) struct Writer {
    database: Arc<Database>,
    connection: SqliteConnection,
    /// Whether commits fsync at present, if known: SQLite's `synchronous` is changed between transactions.
    fsync: Option<bool>,
}

impl Writer {
    pub(super) fn new(database: Arc<Database>, connection: SqliteConnection) -> Self {
        Self { database, connection, fsync: None }
    }

    /// Writes until the database is closed and nothing waits.
    pub(super) async fn run(mut self) {
        let database = self.database.clone();
        loop {
            tokio::select! {
                () = database.inbox.wake.notified() => {}
                () = database.closing.cancelled() => {
                    if self.round().await {
                        continue;
                    }
                    database.inbox.close();
                    break;
                }
            }
            while self.round().await {
                // The tasks that were just answered may send more work: after this yield it shares the next
                // transaction.
                tokio::task::yield_now().await;
            }
        }
        database.processes.leave();
        finish(self.connection, &database.readers).await;
        database.processes.call();
        database.finished.cancel();
    }

    /// Takes the waiting work and writes it; `false` when there was none.
    async fn round(&mut self) -> bool {
        let work = self.database.inbox.with(false, |work| {
            let rest = if work.publishes.len() > MAX_BATCH {
                work.publishes.split_off(MAX_BATCH)
            } else {
                Vec::new()
            };
            let taken = Work { bytes: 0, closed: false, ..std::mem::take(work) };
            work.bytes = rest.iter().map(|publish| publish.record.len()).sum();
            work.publishes = rest;
            taken
        });
        let Work { publishes, claims, settles, renewals, jobs, .. } = work;
        let mut worked = !jobs.is_empty();
        if !(publishes.is_empty() && claims.is_empty() && settles.is_empty() && renewals.is_empty()) {
            worked = true;
            self.commit(publishes, claims, settles, renewals).await;
        }
        for job in jobs {
            match self.set_fsync(false).await {
                Ok(()) => job(Ok(&mut self.connection)).await,
                Err(error) => job(Err(self.database.explain(&error, "write"))).await,
            }
        }
        worked
    }

    async fn set_fsync(&mut self, fsync: bool) -> Sql<()> {
        if self.fsync != Some(fsync) {
            let mut script = Script::default();
            script.statement(synchronous(fsync));
            script.run(&mut self.connection).await?;
            self.fsync = Some(fsync);
        }
        Ok(())
    }

    /// Writes all of it in one transaction.
    async fn commit(
        &mut self,
        publishes: Vec<Publish>,
        claims: Vec<Claim>,
        settles: Vec<Settled>,
        renewals: Vec<Renewal>,
    ) {
        let fsync =
            publishes.iter().any(|publish| publish.fsync) || settles.iter().any(|settled| settled.fsync);
        let mut script = Script::default();
        if self.fsync != Some(fsync) {
            script.statement(synchronous(fsync));
        }
        let mut batch = publish::Batch::new(publishes, self.database.storage.dedup_window);
        let settles = settle::Plan::new(settles);
        if let Err(gone) = self.database.still_intact() {
            return self.fail(&|operation| lost(&gone, operation), batch, claims, settles, renewals);
        }
        // A single statement is a transaction already; this saves `BEGIN` and `COMMIT`.
        let alone =
            claims.is_empty() && settles.is_empty() && renewals.is_empty() && batch.is_one_statement();
        if !alone {
            script.statement("BEGIN IMMEDIATE");
        }
        let claimed: Vec<_> = claims.iter().map(|claim| claim.write(&mut script)).collect();
        let settled = settles.write(&mut script);
        let renewed: Vec<_> = renewals
            .iter()
            .map(|renewal| {
                let step = script.statement(
                    "UPDATE member SET until = ? WHERE id IN (SELECT value FROM json_each(?)) RETURNING id",
                );
                script.bind(renewal.until).bind(connection::json(renewal.members.iter().copied()));
                step
            })
            .collect();
        let result = batch.write(script, alone, &mut self.connection).await;
        self.fsync = result.is_ok().then_some(fsync);
        let answers = match result {
            Ok(answers) => answers,
            Err(error) => {
                // This fails when the error has already ended the transaction.
                let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await;
                let explain = |operation| self.database.explain(&error, operation);
                return self.fail(&explain, batch, claims, settles, renewals);
            }
        };
        // A commit into a file that is no longer at its path counts as not stored: no other process can find it.
        if let Err(gone) = self.database.intact() {
            return self.fail(&|operation| lost(&gone, operation), batch, claims, settles, renewals);
        }
        for (claim, step) in claims.into_iter().zip(claimed) {
            claim.finish(&answers, step);
        }
        for (renewal, step) in renewals.into_iter().zip(renewed) {
            let _ = renewal.answer.send(Ok(ids(&answers[step])));
        }
        let again = settles.finish(&answers, settled);
        let mut stored = batch.finish();
        self.database.tail.extend(std::mem::take(&mut stored.tail));
        if let Some(due) = stored.next_delayed {
            self.database.next_delayed.fetch_min(due, Ordering::AcqRel);
            self.database.keeper.notify_one();
        }
        if stored.any || again {
            self.database.wake_here();
            self.database.processes.call();
        }
    }

    /// Resolves every answer with the error. Settlements are queued again after a pause.
    fn fail(
        &self,
        explain: &(dyn Fn(&'static str) -> Error + Sync),
        batch: publish::Batch,
        claims: Vec<Claim>,
        settles: settle::Plan,
        renewals: Vec<Renewal>,
    ) {
        batch.fail(|| explain("publish"));
        for claim in claims {
            let _ = claim.answer.send(Err(explain("fetch")));
        }
        for renewal in renewals {
            let _ = renewal.answer.send(Err(explain("renew")));
        }
        let waiting = settles.fail(|| explain("settle"));
        if !waiting.is_empty() {
            let database = self.database.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = database.closing.cancelled() => return,
                }
                for settled in waiting {
                    database.inbox.settle(settled);
                }
            });
        }
    }
}

/// Truncates the write-ahead log and closes the connections to the file.
async fn finish(mut writer: SqliteConnection, readers: &SqlitePool) {
    readers.close().await;
    // This fails while another process reads; that process then truncates the log when it closes.
    let _ = sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut writer).await;
    let _ = writer.close().await;
}

fn synchronous(fsync: bool) -> &'static str {
    if fsync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" }
}

/// The first column of each row.
pub(super) fn ids(rows: &[sqlx::sqlite::SqliteRow]) -> Vec<i64> {
    use sqlx::Row;
    rows.iter().filter_map(|row| row.try_get(0).ok()).collect()
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}
