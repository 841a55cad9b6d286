//! The writer task of a database file: all work that waits at the same time shares one transaction and one fsync.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::claim::Claim;
use super::database::Database;
use super::error::{Sql, lost};
use super::publish::Batch;
use super::script::{Answers, Script, ids, json};
use super::settle;
use super::write_queue::{Renewal, Work};
use event_transport::confirm::Answer;
use event_transport::error::Error;

/// The pause before settlements that could not be stored are tried again.
const RETRY: Duration = Duration::from_millis(500);

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
                () = database.queue.waiting() => {}
                () = database.closing.cancelled() => {
                    if self.round().await {
                        continue;
                    }
                    database.queue.close();
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
        let mut work = self.database.queue.take();
        let jobs = std::mem::take(&mut work.jobs);
        let mut worked = !jobs.is_empty();
        if !work.is_empty() {
            worked = true;
            self.commit(work).await;
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
    async fn commit(&mut self, work: Work) {
        let Work { publishes, claims, settles, renewals, looks, .. } = work;
        let fsync =
            publishes.iter().any(|publish| publish.fsync) || settles.iter().any(|settled| settled.fsync);
        let mut script = Script::default();
        if self.fsync != Some(fsync) {
            script.statement(synchronous(fsync));
        }
        let batch = Batch::new(publishes, self.database.storage.dedup_window);
        let mut all = Transaction { batch, claims, settles: settle::Plan::new(settles), renewals, looks };
        if let Err(gone) = self.database.file.still_intact() {
            return self.fail(&|operation| lost(&gone, operation), all);
        }
        let looked = (!all.looks.is_empty()).then(|| script.statement("PRAGMA data_version"));
        // A single statement is a transaction already; this saves `BEGIN` and `COMMIT`.
        let alone = all.claims.is_empty()
            && all.settles.is_empty()
            && all.renewals.is_empty()
            && all.batch.is_one_statement();
        if !alone {
            script.statement("BEGIN IMMEDIATE");
        }
        let claimed: Vec<_> = all.claims.iter().map(|claim| claim.write(&mut script)).collect();
        let settled = all.settles.write(&mut script);
        let renewed: Vec<_> = all
            .renewals
            .iter()
            .map(|renewal| {
                let step = script.statement(
                    "UPDATE member SET until = ? WHERE id IN (SELECT value FROM json_each(?)) RETURNING id",
                );
                script.bind(renewal.until).bind(json(renewal.members.iter().copied()));
                step
            })
            .collect();
        let result = self.write(script, alone, &mut all.batch).await;
        self.fsync = result.is_ok().then_some(fsync);
        let answers = match result {
            Ok(answers) => answers,
            Err(error) => {
                // This fails when the error has already ended the transaction.
                let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await;
                return self.fail(&|operation| self.database.explain(&error, operation), all);
            }
        };
        // A commit into a file that is no longer at its path counts as not stored: no other process can find it.
        if let Err(gone) = self.database.file.intact() {
            return self.fail(&|operation| lost(&gone, operation), all);
        }
        let Transaction { batch, claims, settles, renewals, looks } = all;
        for (claim, step) in claims.into_iter().zip(claimed) {
            claim.finish(&answers, step);
        }
        for (renewal, step) in renewals.into_iter().zip(renewed) {
            let _ = renewal.answer.send(Ok(ids(&answers[step])));
        }
        let version = looked.and_then(|step| answers[step].first()?.try_get(0).ok()).unwrap_or(0);
        for look in looks {
            let _ = look.send(Ok(version));
        }
        let again = settles.finish(&answers, settled);
        let mut stored = batch.finish();
        self.database.tail.extend(std::mem::take(&mut stored.tail));
        if let Some(due) = stored.next_delayed {
            self.database.wake.delayed(due);
        }
        if stored.any || again {
            self.database.wake.subscriptions();
            self.database.processes.call();
        }
    }

    /// Runs `script` and stores the batch, in one call to the connection's thread if no dedup id is involved. Returns
    /// the results of the statements of `script`.
    async fn write(&mut self, mut script: Script, alone: bool, batch: &mut Batch) -> Sql<Answers> {
        // The known ids must be read under the write lock; then the messages must be stored to get their positions, and
        // only then can the ids be stored with these positions.
        if let Some(known) = batch.look_up(&mut script)? {
            let answers = script.run(&mut self.connection).await?;
            batch.mark_duplicates(&answers[known])?;
            let mut script = Script::default();
            let inserted = batch.store(&mut script);
            batch.place(&inserted, &script.run(&mut self.connection).await?)?;
            let mut script = Script::default();
            batch.remember(&mut script);
            script.statement("COMMIT");
            script.run(&mut self.connection).await?;
            return Ok(answers);
        }
        let inserted = batch.store(&mut script);
        if !alone {
            script.statement("COMMIT");
        }
        let answers = script.run(&mut self.connection).await?;
        batch.place(&inserted, &answers)?;
        Ok(answers)
    }

    /// Resolves every answer with the error. Settlements are queued again after a pause.
    fn fail(&self, explain: &(dyn Fn(&'static str) -> Error + Sync), all: Transaction) {
        all.batch.fail(|| explain("publish"));
        for claim in all.claims {
            let _ = claim.answer.send(Err(explain("fetch")));
        }
        for renewal in all.renewals {
            let _ = renewal.answer.send(Err(explain("renew")));
        }
        for look in all.looks {
            let _ = look.send(Err(explain("renew")));
        }
        let waiting = all.settles.fail(|| explain("settle"));
        if !waiting.is_empty() {
            let database = self.database.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = database.closing.cancelled() => return,
                }
                for settled in waiting {
                    database.queue.settle(settled);
                }
            });
        }
    }
}

/// The work of one transaction.
struct Transaction {
    batch: Batch,
    claims: Vec<Claim>,
    settles: settle::Plan,
    renewals: Vec<Renewal>,
    looks: Vec<Answer<i64>>,
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
