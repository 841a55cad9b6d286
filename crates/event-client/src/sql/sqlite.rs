//! The statements of outbox and inbox for SQLite. It has one writer at a time, so positions are in commit order.

use std::future::{pending, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row as _, query};

use super::{COUNTS, Counts, Dialect, Look, MISSING_TABLE, Notifier, Row, now};
use event_transport::bounds;
use event_transport::error::ErrorKind;

const TABLES: [&str; 7] = [
    "CREATE TABLE IF NOT EXISTS outbox (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        aggregatetype TEXT NOT NULL,
        aggregateid TEXT,
        type TEXT NOT NULL,
        payload TEXT NOT NULL,
        headers TEXT NOT NULL,
        created INTEGER NOT NULL,
        published INTEGER,
        error TEXT
    ) STRICT",
    "CREATE INDEX IF NOT EXISTS outbox_waiting ON outbox (position) WHERE published IS NULL AND error IS NULL",
    "CREATE INDEX IF NOT EXISTS outbox_refused ON outbox (position) WHERE published IS NULL AND error IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS outbox_published ON outbox (published) WHERE published IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS outbox_relay (
        name TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS inbox (key TEXT PRIMARY KEY, handled INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS inbox_handled ON inbox (handled)",
];

impl Dialect for Sqlite {
    type Cursor = ();
    type Notifier = NoNotifier;

    fn create_tables(connection: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            for table in TABLES {
                query(table).execute(&mut *connection).await?;
            }
            Ok(())
        })
    }

    fn stage(connection: &mut SqliteConnection, rows: Vec<Row>) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            for row in rows {
                let insert = query(
                    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, created)
                     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                );
                let insert = insert.bind(row.id).bind(row.aggregatetype).bind(row.aggregateid).bind(row.kind);
                let insert = insert.bind(row.payload).bind(row.headers).bind(row.created);
                insert.execute(&mut *connection).await?;
            }
            Ok(())
        })
    }

    fn waiting<'c>(
        connection: &'c mut SqliteConnection,
        (): &'c mut (),
        limit: u32,
    ) -> BoxFuture<'c, sqlx::Result<Look>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created FROM outbox
             WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT ?",
        );
        Box::pin(async move {
            let rows = select.bind(limit).try_map(|row| read(&row)).fetch_all(connection).await?;
            Ok(Look { rows, open: false })
        })
    }

    fn notifier(_: &SqlitePool) -> NoNotifier {
        NoNotifier
    }

    fn claim<'c>(
        connection: &'c mut SqliteConnection,
        holder: &'c str,
        lease: Duration,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        // All holders are on this machine and share its clock.
        let upsert = query(
            "INSERT INTO outbox_relay (name, holder, until) VALUES ('relay', ?1, ?2)
             ON CONFLICT (name) DO UPDATE SET holder = ?1, until = ?2 WHERE holder = ?1 OR until <= ?3",
        );
        let now = now();
        let upsert = upsert.bind(holder).bind(now.saturating_add(bounds::signed_millis(lease))).bind(now);
        Box::pin(async move { Ok(upsert.execute(connection).await?.rows_affected() > 0) })
    }

    fn yield_claim<'c>(
        connection: &'c mut SqliteConnection,
        holder: &'c str,
    ) -> BoxFuture<'c, sqlx::Result<()>> {
        let delete = query("DELETE FROM outbox_relay WHERE holder = ?").bind(holder);
        Box::pin(async move { delete.execute(connection).await.map(drop) })
    }

    fn mark(
        connection: &mut SqliteConnection,
        positions: Vec<i64>,
        now: i64,
    ) -> BoxFuture<'_, sqlx::Result<()>> {
        // One SQL text for any number of rows, so that the statement stays prepared.
        let update =
            query("UPDATE outbox SET published = ? WHERE position IN (SELECT value FROM json_each(?))");
        let update = update.bind(now).bind(list(&positions));
        Box::pin(async move { update.execute(connection).await.map(drop) })
    }

    fn set_aside(
        connection: &mut SqliteConnection,
        position: i64,
        error: String,
    ) -> BoxFuture<'_, sqlx::Result<()>> {
        let update = query("UPDATE outbox SET error = ? WHERE position = ?").bind(error).bind(position);
        Box::pin(async move { update.execute(connection).await.map(drop) })
    }

    fn counts(connection: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<Counts>> {
        let count = query(COUNTS);
        let read = |row: SqliteRow| {
            let (waiting, oldest, set_aside): (i64, _, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Counts { waiting: waiting as u64, oldest, set_aside: set_aside as u64 })
        };
        Box::pin(async move { count.try_map(read).fetch_one(connection).await })
    }

    fn refused(
        connection: &mut SqliteConnection,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<Vec<(Row, String)>>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created, error FROM outbox
             WHERE published IS NULL AND error IS NOT NULL ORDER BY position LIMIT ?",
        );
        let select = select.bind(limit).try_map(|row| Ok((read(&row)?, row.try_get(8)?)));
        Box::pin(async move { select.fetch_all(connection).await })
    }

    fn retry(
        connection: &mut SqliteConnection,
        ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        let update = query(
            "UPDATE outbox SET error = NULL WHERE published IS NULL AND error IS NOT NULL
             AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))",
        );
        let update = update.bind(ids.as_ref().map(list));
        Box::pin(async move { Ok(update.execute(connection).await?.rows_affected()) })
    }

    fn discard(
        connection: &mut SqliteConnection,
        ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        let delete = query(
            "DELETE FROM outbox WHERE published IS NULL AND error IS NOT NULL
             AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))",
        );
        let delete = delete.bind(ids.as_ref().map(list));
        Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) })
    }

    fn prune_outbox(
        connection: &mut SqliteConnection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        let delete = query(
            "DELETE FROM outbox WHERE position IN (SELECT position FROM outbox WHERE published < ? LIMIT ?)",
        );
        let delete = delete.bind(before).bind(limit);
        Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) })
    }

    fn note<'c>(
        connection: &'c mut SqliteConnection,
        key: &'c str,
        former: &'c str,
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        let insert = query(
            "INSERT INTO inbox (key, handled) SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM inbox WHERE key = ?) \
             ON CONFLICT (key) DO NOTHING",
        );
        let insert = insert.bind(key).bind(now).bind(former);
        Box::pin(async move { Ok(insert.execute(connection).await?.rows_affected() > 0) })
    }

    fn prune_inbox(
        connection: &mut SqliteConnection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        let delete =
            query("DELETE FROM inbox WHERE key IN (SELECT key FROM inbox WHERE handled < ? LIMIT ?)");
        let delete = delete.bind(before).bind(limit);
        Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) })
    }

    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)> {
        error.message().starts_with("no such table").then_some(MISSING_TABLE)
    }
}

/// Several values as one JSON parameter for `json_each`.
fn list<T: serde::Serialize>(values: &Vec<T>) -> String {
    serde_json::to_string(values).expect("numbers and text always encode")
}

/// SQLite cannot notify other processes of a commit: a relay is woken within its process, and otherwise polls.
#[derive(Debug)]
pub struct NoNotifier;

impl Notifier for NoNotifier {
    fn listen(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    fn is_armed(&self) -> bool {
        false
    }

    fn notified(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }

    fn disarm(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

fn read(row: &SqliteRow) -> sqlx::Result<Row> {
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
