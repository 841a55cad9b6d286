//! The statements of outbox and inbox for PostgreSQL, whose concurrent writers commit in another order than positions.
//!
//! - Order: `cursor` returns a row only when every transaction that may have staged an earlier row has ended.
//! - Several relays: a lease in a row, by the server's clock. It needs no session, so it works through connection
//!   poolers, and another relay can take it over from a relay that hangs as well as from one that has ended. It only
//!   avoids double work: each relay publishes a key's rows in order from the oldest, so the first copies are in order
//!   whichever relay publishes. Row locks with SKIP LOCKED would break the order: the skipped rows are the older ones
//!   of a key.
//! - Waking: `notify` lets staging transactions notify only while a relay sleeps.

mod cursor;
mod notify;
mod tables;

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgPool, PgRow, Postgres};
use sqlx::{Row as _, query};

use super::{COUNTS, Counts, Dialect, Look, MISSING_TABLE, Row};
use event_transport::bounds;
use event_transport::error::ErrorKind;

impl Dialect for Postgres {
    type Cursor = cursor::Cursor;
    type Notifier = notify::Notifier;

    fn create_tables(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(tables::create(connection))
    }

    fn stage(connection: &mut PgConnection, rows: Vec<Row>) -> BoxFuture<'_, sqlx::Result<()>> {
        // One SQL text for any number of rows, so that the statement stays prepared and needs one round trip. `ORDER
        // BY` gives positions in the order of the rows. The second half notifies the relay: see `notify`.
        let insert = query(
            "WITH staged AS (
                INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, created)
                SELECT id, aggregatetype, aggregateid, type, payload, headers, created
                FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
                    WITH ORDINALITY AS event (id, aggregatetype, aggregateid, type, payload, headers, created, n)
                ORDER BY n
                ON CONFLICT (id) DO NOTHING
             )
             SELECT pg_notify('outbox_' || 'outbox'::regclass::oid, '')
             WHERE NOT pg_try_advisory_xact_lock_shared($8 + 'outbox'::regclass::oid::bigint)",
        );
        let insert = insert
            .bind(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.aggregatetype.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.aggregateid.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.kind.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.payload.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.headers.clone()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.created).collect::<Vec<_>>())
            .bind(notify::LOCK);
        Box::pin(async move { insert.execute(connection).await.map(drop) })
    }

    fn waiting<'c>(
        connection: &'c mut PgConnection,
        cursor: &'c mut cursor::Cursor,
        limit: u32,
    ) -> BoxFuture<'c, sqlx::Result<Look>> {
        Box::pin(cursor.look(connection, limit))
    }

    fn notifier(pool: &PgPool) -> notify::Notifier {
        notify::Notifier::new(pool.clone())
    }

    fn claim<'c>(
        connection: &'c mut PgConnection,
        holder: &'c str,
        lease: Duration,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        let upsert = query(
            "INSERT INTO outbox_relay AS held (name, holder, until)
             VALUES ('relay', $1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $2)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
             WHERE held.holder = $1 OR held.until <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        );
        // Bounded, so that the sum cannot overflow.
        let upsert = upsert.bind(holder).bind(bounds::signed_millis(lease).min(i64::from(i32::MAX)));
        Box::pin(async move { Ok(upsert.execute(connection).await?.rows_affected() > 0) })
    }

    fn yield_claim<'c>(connection: &'c mut PgConnection, holder: &'c str) -> BoxFuture<'c, sqlx::Result<()>> {
        let delete = query("DELETE FROM outbox_relay WHERE holder = $1").bind(holder);
        Box::pin(async move { delete.execute(connection).await.map(drop) })
    }

    fn mark(connection: &mut PgConnection, positions: Vec<i64>, now: i64) -> BoxFuture<'_, sqlx::Result<()>> {
        let update = query("UPDATE outbox SET published = $1 WHERE position = ANY($2) AND published IS NULL");
        let update = update.bind(now).bind(positions);
        Box::pin(async move { update.execute(connection).await.map(drop) })
    }

    fn set_aside(
        connection: &mut PgConnection,
        position: i64,
        error: String,
    ) -> BoxFuture<'_, sqlx::Result<()>> {
        let update = query("UPDATE outbox SET error = $1 WHERE position = $2").bind(error).bind(position);
        Box::pin(async move { update.execute(connection).await.map(drop) })
    }

    fn counts(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<Counts>> {
        let count = query(COUNTS);
        let read = |row: PgRow| {
            let (waiting, oldest, set_aside): (i64, _, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Counts { waiting: waiting as u64, oldest, set_aside: set_aside as u64 })
        };
        Box::pin(async move { count.try_map(read).fetch_one(connection).await })
    }

    fn refused(connection: &mut PgConnection, limit: u32) -> BoxFuture<'_, sqlx::Result<Vec<(Row, String)>>> {
        let select = query(
            "SELECT position, id, aggregatetype, aggregateid, type, payload, headers, created, error FROM outbox
             WHERE published IS NULL AND error IS NOT NULL ORDER BY position LIMIT $1",
        );
        let select = select.bind(i64::from(limit)).try_map(|row| Ok((cursor::read(&row)?, row.try_get(8)?)));
        Box::pin(async move { select.fetch_all(connection).await })
    }

    fn retry(connection: &mut PgConnection, ids: Option<Vec<String>>) -> BoxFuture<'_, sqlx::Result<u64>> {
        let update = query(
            "UPDATE outbox SET error = NULL WHERE published IS NULL AND error IS NOT NULL
             AND ($1::text[] IS NULL OR id = ANY($1))",
        );
        Box::pin(async move { Ok(update.bind(ids).execute(connection).await?.rows_affected()) })
    }

    fn discard(connection: &mut PgConnection, ids: Option<Vec<String>>) -> BoxFuture<'_, sqlx::Result<u64>> {
        let delete = query(
            "DELETE FROM outbox WHERE published IS NULL AND error IS NOT NULL
             AND ($1::text[] IS NULL OR id = ANY($1))",
        );
        Box::pin(async move { Ok(delete.bind(ids).execute(connection).await?.rows_affected()) })
    }

    fn prune_outbox(
        connection: &mut PgConnection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        // Several relays may prune at the same time: `SKIP LOCKED` makes each delete different rows.
        let delete = query(
            "DELETE FROM outbox WHERE position = ANY(ARRAY(
                SELECT position FROM outbox WHERE published < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
        );
        let delete = delete.bind(before).bind(i64::from(limit));
        Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) })
    }

    fn note<'c>(
        connection: &'c mut PgConnection,
        key: &'c str,
        former: &'c str,
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>> {
        // A second transaction with the same key waits here until the first has ended.
        let insert = query(
            "INSERT INTO inbox (key, handled) SELECT $1::text, $2::bigint \
             WHERE NOT EXISTS (SELECT 1 FROM inbox WHERE key = $3) ON CONFLICT (key) DO NOTHING",
        );
        let insert = insert.bind(key).bind(now).bind(former);
        Box::pin(async move { Ok(insert.execute(connection).await?.rows_affected() > 0) })
    }

    fn prune_inbox(
        connection: &mut PgConnection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>> {
        let delete = query(
            "DELETE FROM inbox WHERE key = ANY(ARRAY(
                SELECT key FROM inbox WHERE handled < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
        );
        let delete = delete.bind(before).bind(i64::from(limit));
        Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) })
    }

    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)> {
        use ErrorKind::{Config, Denied, Full, Unavailable};
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        Some(match &*error.code()? {
            "42P01" => MISSING_TABLE,
            "42703" => (Config, "the table lacks a column of this library; another program may use the name"),
            "42501" => (
                Denied,
                "the role lacks a permission; it needs SELECT, INSERT, UPDATE and DELETE on outbox, outbox_relay \
                 and inbox, and CREATE on the schema to create them",
            ),
            "28P01" | "28000" => (Denied, "the database refuses this user; check name and password"),
            "3D000" => (Config, "the database does not exist"),
            "25006" => (Unavailable, "the database is read-only; connect to the primary"),
            "40001" | "40P01" => (Unavailable, "the transaction conflicted with another one; try it again"),
            "53100" => (Full, "the database's disk is full"),
            "53300" => (Unavailable, "the database has no free connection"),
            "57P01" | "57P02" | "57P03" => (Unavailable, "the database is starting or stopping"),
            _ => return None,
        })
    }
}
