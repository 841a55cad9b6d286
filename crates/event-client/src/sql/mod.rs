//! What outbox and inbox ask of a database: one trait, one implementation a database.

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::bounds;
use crate::error::{Error, ErrorKind, Result};

/// A staged event: one row of the outbox.
///
/// The columns are those of Debezium's outbox router, so that change data capture can take the relay's place.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// Order of staging; given by the database.
    pub position: i64,
    /// The event's id, kept through every repeat.
    pub id: String,
    /// The topic: `orders`.
    pub aggregatetype: String,
    /// The ordering key.
    pub aggregateid: Option<String>,
    /// Subject and CloudEvents type: `orders.placed.v1`.
    pub kind: String,
    /// The data as JSON.
    pub payload: String,
    /// Attributes and headers as a JSON object: `ce-` names and free ones.
    pub headers: String,
    /// When it was staged, in Unix milliseconds.
    pub created: i64,
}

/// What a relay finds when it looks for work.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Look {
    /// The oldest rows that may be published now, in order.
    pub rows: Vec<Row>,
    /// Transactions that have staged something are still open: look again soon.
    pub open: bool,
}

/// What stands in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Committed and not yet published.
    pub waiting: u64,
    /// When the oldest of them was staged, in Unix milliseconds.
    pub oldest: Option<i64>,
    /// Set aside because they cannot be published.
    pub set_aside: u64,
}

/// Rings when another process has committed staged events.
pub trait Notifier: Send {
    /// Sees to it that every transaction rings that stages something from now on. What was committed before
    /// did not: look once more when it succeeds.
    fn listen(&mut self) -> BoxFuture<'_, ()>;

    /// Whether it will ring.
    fn is_armed(&self) -> bool;

    /// Resolves when it rings, or when it can no longer be relied on. Pending for ever while it is not armed.
    fn notified(&mut self) -> BoxFuture<'_, ()>;

    /// Nobody needs to ring while the relay works.
    fn disarm(&mut self) -> BoxFuture<'_, ()>;
}

/// The statements of one database. Times are Unix milliseconds; every call is one statement or one transaction,
/// unless it says otherwise.
pub trait Dialect: sqlx::Database {
    /// What a relay remembers from look to look.
    type Cursor: Default + Send;
    /// How this database wakes a relay.
    type Notifier: Notifier;

    /// Creates the tables of outbox and inbox where they are missing.
    fn create_tables(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Adds rows to the outbox, in their order; a known id changes nothing.
    fn stage(connection: &mut Self::Connection, rows: Vec<Row>) -> BoxFuture<'_, sqlx::Result<()>>;

    /// The oldest rows that are neither published nor set aside. It must never show a row before all rows
    /// staged earlier under the same key are committed or gone. May take several statements.
    fn waiting<'c>(
        connection: &'c mut Self::Connection,
        cursor: &'c mut Self::Cursor,
        limit: u32,
    ) -> BoxFuture<'c, sqlx::Result<Look>>;

    /// A bell for a relay on `pool`.
    fn notifier(pool: &sqlx::Pool<Self>) -> Self::Notifier;

    /// Takes or renews the right to publish for the time of `lease`; `false` while another holder's lasts.
    fn claim<'c>(
        connection: &'c mut Self::Connection,
        holder: &'c str,
        lease: Duration,
    ) -> BoxFuture<'c, sqlx::Result<bool>>;

    /// Gives the right back.
    fn yield_claim<'c>(
        connection: &'c mut Self::Connection,
        holder: &'c str,
    ) -> BoxFuture<'c, sqlx::Result<()>>;

    /// Marks rows as published, in one statement.
    fn mark(
        connection: &mut Self::Connection,
        positions: Vec<i64>,
        now: i64,
    ) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Sets a row aside that can never be published.
    fn set_aside(
        connection: &mut Self::Connection,
        position: i64,
        error: String,
    ) -> BoxFuture<'_, sqlx::Result<()>>;

    /// What stands in the outbox.
    fn counts(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<Counts>>;

    /// Rows that were set aside, the oldest first, each with its error.
    fn refused(
        connection: &mut Self::Connection,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<Vec<(Row, String)>>>;

    /// Lets rows that were set aside wait again, all of them or those with these ids; answers how many.
    fn retry(connection: &mut Self::Connection, ids: Option<Vec<String>>)
    -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Deletes rows that were set aside, all of them or those with these ids; answers how many.
    fn discard(
        connection: &mut Self::Connection,
        ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Deletes up to `limit` rows published before `before`; answers how many.
    fn prune_outbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Notes a key in the inbox; `false` when it or its `former` spelling was there. Concurrent calls with one key must
    /// wait for each other.
    fn note<'c>(
        connection: &'c mut Self::Connection,
        key: &'c str,
        former: &'c str,
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>>;

    /// Deletes up to `limit` keys noted before `before`; answers how many.
    fn prune_inbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// What an error of the database means, and what to do; `None` when only its own words say it.
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)>;
}

/// For [`Dialect::counts`], the same in every database: each part has an index of its own.
const COUNTS: &str = "SELECT
    (SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NULL),
    (SELECT created FROM outbox WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT 1),
    (SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NOT NULL)";

/// For [`Dialect::meaning`].
const MISSING_TABLE: (ErrorKind, &str) =
    (ErrorKind::Config, "the table is missing; call `outbox::create_tables` at start-up");

/// A database error in the crate's words.
pub(crate) fn explain<D: Dialect>(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| {
        let (kind, text) = match &error {
            sqlx::Error::PoolClosed => (ErrorKind::Closed, "the pool is closed"),
            sqlx::Error::PoolTimedOut => (
                ErrorKind::Unavailable,
                "no connection came free in time: the database does not answer or the pool is too small",
            ),
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                (ErrorKind::Corrupt, "the table holds what this library did not write")
            }
            sqlx::Error::Configuration(_) => (ErrorKind::Config, "the database's URL or options are wrong"),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
                (ErrorKind::Unavailable, "the database cannot be reached")
            }
            sqlx::Error::Database(error) => {
                D::meaning(&**error).unwrap_or((ErrorKind::Unavailable, "the database refused"))
            }
            _ => (ErrorKind::Unavailable, "the database refused"),
        };
        Error::new(kind, text).during(operation).because(error)
    }
}

/// Creates the tables of outbox and inbox where they are missing, all or none.
///
/// # Errors
/// What the database says.
pub async fn create_tables<D: Dialect>(pool: &sqlx::Pool<D>) -> Result<()> {
    let create = async {
        let mut transaction = pool.begin().await?;
        D::create_tables(&mut transaction).await?;
        transaction.commit().await
    };
    create.await.map_err(explain::<D>("create outbox and inbox"))
}

/// Unix milliseconds.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// `age` before now, in Unix milliseconds.
pub(crate) fn ago(age: Duration) -> i64 {
    now().saturating_sub(bounds::signed_millis(age))
}
