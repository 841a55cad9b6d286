//! SQLite: one writer at a time, so the order of positions is the order of commits.

use futures_util::future::BoxFuture;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteRow};
use sqlx::{Row as _, query};

use super::{Dialect, Row};

const TABLES: [&str; 6] = [
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
    fn create_tables(connection: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            for table in TABLES {
                query(table).execute(&mut *connection).await?;
            }
            Ok(())
        })
    }

    fn stage(connection: &mut SqliteConnection, row: Row) -> BoxFuture<'_, sqlx::Result<()>> {
        let insert = query(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, created)
             VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        );
        let insert = insert.bind(row.id).bind(row.aggregatetype).bind(row.aggregateid).bind(row.kind);
        let insert = insert.bind(row.payload).bind(row.headers).bind(row.created);
        Box::pin(async move { insert.execute(connection).await.map(drop) })
    }

    fn waiting(connection: &mut SqliteConnection, limit: u32) -> BoxFuture<'_, sqlx::Result<Vec<Row>>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created FROM outbox
             WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT ?",
        );
        Box::pin(async move { select.bind(limit).try_map(read).fetch_all(connection).await })
    }

    fn claim<'c>(
        connection: &'c mut SqliteConnection,
        holder: &'c str,
        now: i64,
        until: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        let upsert = query(
            "INSERT INTO outbox_relay (name, holder, until) VALUES ('relay', ?1, ?2)
             ON CONFLICT (name) DO UPDATE SET holder = ?1, until = ?2 WHERE holder = ?1 OR until <= ?3",
        );
        let upsert = upsert.bind(holder).bind(until).bind(now);
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
        // One statement of one text however many rows there are, so that it stays prepared.
        let update =
            query("UPDATE outbox SET published = ? WHERE position IN (SELECT value FROM json_each(?))");
        let positions = serde_json::to_string(&positions).expect("numbers always encode");
        let update = update.bind(now).bind(positions);
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
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        let insert = query("INSERT INTO inbox (key, handled) VALUES (?, ?) ON CONFLICT (key) DO NOTHING");
        let insert = insert.bind(key).bind(now);
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

    fn is_missing_table(error: &dyn sqlx::error::DatabaseError) -> bool {
        error.message().starts_with("no such table")
    }
}

fn read(row: SqliteRow) -> sqlx::Result<Row> {
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
