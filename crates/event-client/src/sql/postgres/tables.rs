//! Creates the tables of outbox and inbox in PostgreSQL.

use sqlx::postgres::PgConnection;
use sqlx::query_scalar;

/// Makes one of two services that start at the same time wait for the other: with `IF NOT EXISTS` alone both would try
/// to create the tables, and one would fail.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('backbone outbox: create tables', 0))";

const THERE: &str = "SELECT to_regclass('outbox') IS NOT NULL AND to_regclass('outbox_waiting') IS NOT NULL
    AND to_regclass('outbox_refused') IS NOT NULL AND to_regclass('outbox_published') IS NOT NULL
    AND to_regclass('outbox_relay') IS NOT NULL AND to_regclass('inbox') IS NOT NULL
    AND to_regclass('inbox_handled') IS NOT NULL";

// Rows are inserted and deleted all the time: autovacuum starts by a number of rows rather than by a share of the
// table, because otherwise scans of a table that was large once would read many dead rows.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS outbox (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        aggregatetype TEXT NOT NULL,
        aggregateid TEXT,
        type TEXT NOT NULL,
        payload TEXT NOT NULL,
        headers TEXT NOT NULL,
        created BIGINT NOT NULL,
        published BIGINT,
        error TEXT
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
            autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
    CREATE INDEX IF NOT EXISTS outbox_waiting ON outbox (position) WHERE published IS NULL AND error IS NULL;
    CREATE INDEX IF NOT EXISTS outbox_refused ON outbox (position) WHERE published IS NULL AND error IS NOT NULL;
    CREATE INDEX IF NOT EXISTS outbox_published ON outbox (published) WHERE published IS NOT NULL;
    CREATE TABLE IF NOT EXISTS outbox_relay (
        name TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        until BIGINT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS inbox (key TEXT PRIMARY KEY, handled BIGINT NOT NULL);
    CREATE INDEX IF NOT EXISTS inbox_handled ON inbox (handled);";

/// Creates the missing tables and indexes. If none is missing, this also succeeds for a role without permission to
/// create tables.
pub(super) async fn create(connection: &mut PgConnection) -> sqlx::Result<()> {
    if query_scalar(THERE).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    sqlx::query(LOCK).execute(&mut *connection).await?;
    // Suppresses the server's notices that a table exists already.
    sqlx::raw_sql("SET LOCAL client_min_messages = warning").execute(&mut *connection).await?;
    sqlx::raw_sql(TABLES).execute(&mut *connection).await.map(drop)
}
