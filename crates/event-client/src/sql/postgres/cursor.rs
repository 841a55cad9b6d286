//! Which rows may be published now.
//!
//! Positions are given when a row is staged and seen when its transaction commits, so a later position may appear
//! before an earlier one of the same key. The cursor therefore has a ceiling: up to it, every row that will ever
//! be is there. To raise it, the cursor notes the newest committed position and who has the table open for
//! writing (`pg_locks` tells); when all of those have ended, the noted position is the new ceiling. A writer
//! takes the table's lock before its first position and keeps it until its end, so none is missed. Only
//! transactions that have staged something are waited for; one that stays open holds the outbox back, which is
//! logged with its process id.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row as _, query};

use super::read;
use crate::sql::Look;

/// Rows below the floor are looked for again this often: an operator may have let one wait again.
const FROM_THE_BEGINNING: Duration = Duration::from_secs(2);
/// A transaction that holds the outbox back for longer is named in the log, and again each time as long.
const LONG: Duration = Duration::from_secs(10);

/// What a relay knows of the table from earlier looks.
#[derive(Debug, Default)]
pub struct Cursor {
    /// No row at or below it waits. Spares the index its dead entries, which a long transaction elsewhere keeps.
    floor: i64,
    /// No row at or below it is still to appear.
    ceiling: i64,
    /// The ceiling to be.
    next: Option<Next>,
    began: Option<Instant>,
}

#[derive(Debug)]
struct Next {
    ceiling: i64,
    /// Virtual transaction ids of those who may have staged below it.
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

    async fn rows(&self, connection: &mut PgConnection, limit: u32) -> sqlx::Result<Vec<crate::sql::Row>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created FROM outbox
             WHERE published IS NULL AND error IS NULL AND position > $1 AND position <= $2
             ORDER BY position LIMIT $3",
        );
        let select = select.bind(self.floor).bind(self.ceiling).bind(i64::from(limit));
        select.try_map(|row| read(&row)).fetch_all(connection).await
    }

    /// Raises the ceiling where it can; answers whether somebody has the table open for writing.
    async fn raise(&mut self, connection: &mut PgConnection) -> sqlx::Result<bool> {
        // The rows are those of before this statement, the locks those of now: a writer below the newest row is
        // either among the locks or had ended, and then the next statement sees what it left.
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
            "a transaction that has staged events stays open and holds the outbox back"
        );
    }
}
