//! Finds the outbox rows that may be published now, in the order of staging, although commits have another order.
//!
//! A row gets its position when it is staged and becomes visible when its transaction commits, so a later position may
//! become visible before an earlier one of the same key. The cursor therefore has a ceiling: up to it, no further row
//! can appear. To raise the ceiling, the cursor reads the newest committed position and the transactions that have the
//! table open for writing (from `pg_locks`); when all of these have ended, that position is the new ceiling. A writer
//! takes the table's lock before its first position and keeps it until its transaction ends, so none is missed. The
//! cursor waits only for transactions that have staged something; one that stays open stops the publication of later
//! rows, which is logged with its process id.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row as _, query};

use crate::sql::{Look, Row};

/// The interval at which rows below the floor are queried again: an operator may have set one to wait again.
const FROM_THE_BEGINNING: Duration = Duration::from_secs(2);
/// A transaction that delays the publication by this time is logged, and logged again each time this time has passed.
const LONG: Duration = Duration::from_secs(10);

/// The state of a relay's cursor between two queries.
#[derive(Debug, Default)]
pub struct Cursor {
    /// No row at or below it waits. It saves the scan of dead index entries, which a long transaction elsewhere keeps.
    floor: i64,
    /// No further row at or below it can appear.
    ceiling: i64,
    /// The next ceiling, and the transactions to wait for.
    next: Option<Next>,
    began: Option<Instant>,
}

#[derive(Debug)]
struct Next {
    ceiling: i64,
    /// Virtual transaction ids of the transactions that may have staged rows below it.
    writers: Vec<String>,
    since: Instant,
    reported: Duration,
}

impl Cursor {
    pub(super) async fn look(&mut self, connection: &mut PgConnection, limit: u32) -> sqlx::Result<Look> {
        if self.began.is_none_or(|at| at.elapsed() >= FROM_THE_BEGINNING) {
            self.began = Some(Instant::now());
            self.floor = 0;
        }
        loop {
            if self.floor < self.ceiling {
                let rows = self.rows(connection, limit).await?;
                self.floor = rows.first().map_or(self.ceiling, |row| row.position - 1);
                if !rows.is_empty() {
                    return Ok(Look { rows, open: false });
                }
            }
            let ceiling = self.ceiling;
            let open = self.raise(connection).await?;
            if self.ceiling == ceiling {
                return Ok(Look { rows: Vec::new(), open });
            }
        }
    }

    async fn rows(&self, connection: &mut PgConnection, limit: u32) -> sqlx::Result<Vec<Row>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created FROM outbox
             WHERE published IS NULL AND error IS NULL AND position > $1 AND position <= $2
             ORDER BY position LIMIT $3",
        );
        let select = select.bind(self.floor).bind(self.ceiling).bind(i64::from(limit));
        select.try_map(|row| read(&row)).fetch_all(connection).await
    }

    /// Raises the ceiling if possible. Returns whether a transaction has the table open for writing.
    async fn raise(&mut self, connection: &mut PgConnection) -> sqlx::Result<bool> {
        // The statement sees the rows committed before it starts, and the locks held while it runs: a writer below the
        // newest row either still has its lock, or has ended, and then the next statement sees its rows.
        let select = query(
            "SELECT (SELECT max(position) FROM outbox
                     WHERE published IS NULL AND error IS NULL AND position > $1),
                    coalesce(array_agg(virtualtransaction), '{}'), coalesce(array_agg(pid), '{}')
             FROM pg_locks
             WHERE locktype = 'relation' AND relation = 'outbox'::regclass AND mode = 'RowExclusiveLock' AND granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND pid IS DISTINCT FROM pg_backend_pid()",
        );
        let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let (newest, writers, pids): (Option<i64>, Vec<String>, Vec<Option<i32>>) =
            select.bind(self.ceiling).try_map(read).fetch_one(connection).await?;
        let open = !writers.is_empty();
        if let Some(next) = &mut self.next {
            if next.writers.iter().any(|writer| writers.contains(writer)) {
                next.report(&pids);
                return Ok(open);
            }
            self.ceiling = next.ceiling;
            self.next = None;
        }
        let Some(newest) = newest.filter(|newest| *newest > self.ceiling) else { return Ok(open) };
        if open {
            let (since, reported) = (Instant::now(), Duration::ZERO);
            self.next = Some(Next { ceiling: newest, writers, since, reported });
        } else {
            self.ceiling = newest;
        }
        Ok(open)
    }
}

impl Next {
    fn report(&mut self, pids: &[Option<i32>]) {
        let held = self.since.elapsed();
        if held < self.reported + LONG {
            return;
        }
        self.reported = held;
        tracing::warn!(
            held_ms = held.as_millis() as u64,
            server_pids = ?pids.iter().flatten().collect::<Vec<_>>(),
            "a transaction that has staged events stays open and delays the publication of later events"
        );
    }
}

/// Reads a row of the outbox, whose columns are selected in the order of [`Row`]'s fields.
pub(super) fn read(row: &PgRow) -> sqlx::Result<Row> {
    Ok(Row {
        position: row.try_get(0)?,
        id: row.try_get(1)?,
        aggregatetype: row.try_get(2)?,
        aggregateid: row.try_get(3)?,
        kind: row.try_get(4)?,
        payload: row.try_get(5)?,
        headers: row.try_get(6)?,
        created: row.try_get(7)?,
    })
}
