//! The SQL statements of outbox and inbox: one trait, with one implementation per database.

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

use std::time::Duration;

use futures_util::future::BoxFuture;

use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};

/// A staged event: one row of the outbox.
///
/// The columns are those of Debezium's outbox router, so that change data capture can replace the relay.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The order of staging; the database assigns it.
    pub position: i64,
    /// The event's id; repeated publishes keep it.
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
    /// The time of staging, in Unix milliseconds.
    pub created: i64,
}

/// The result of [`Dialect::waiting`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Look {
    /// The oldest rows that may be published now, in order.
    pub rows: Vec<Row>,
    /// Whether transactions that have staged events are still open: query again soon.
    pub open: bool,
}

/// The number of unpublished rows in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Rows that are committed and not yet published.
    pub waiting: u64,
    /// The time at which the oldest of them was staged, in Unix milliseconds.
    pub oldest: Option<i64>,
    /// Rows that are set aside because they cannot be published.
    pub set_aside: u64,
}

/// Wakes a relay when another process has committed staged events.
pub trait Notifier: Send {
    /// Arms the notifier: every transaction that stages events from now on notifies it. Earlier commits did not:
    /// query the outbox once more when this succeeds.
    fn listen(&mut self) -> BoxFuture<'_, ()>;

    /// Whether it is armed, so that it will be notified.
    fn is_armed(&self) -> bool;

    /// Resolves at a notification, or when the notifier has failed. Pending for ever while it is not armed.
    fn notified(&mut self) -> BoxFuture<'_, ()>;

    /// Disarms the notifier: transactions need not notify while the relay works.
    fn disarm(&mut self) -> BoxFuture<'_, ()>;
}

/// The statements of one database. Times are Unix milliseconds. Each call is one statement or one transaction,
/// unless its documentation states otherwise.
pub trait Dialect: sqlx::Database {
    /// The state that a relay keeps between two calls of [`Dialect::waiting`].
    type Cursor: Default + Send;
    /// The mechanism by which this database wakes a relay.
    type Notifier: Notifier;

    /// Creates the missing tables of outbox and inbox.
    fn create_tables(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Adds rows to the outbox, in their order; a row whose id is already there is ignored.
    fn stage(connection: &mut Self::Connection, rows: Vec<Row>) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Returns the oldest rows that are neither published nor set aside. It must never return a row before all rows
    /// staged earlier with the same key are committed or rolled back. It may use several statements.
    fn waiting<'c>(
        connection: &'c mut Self::Connection,
        cursor: &'c mut Self::Cursor,
        limit: u32,
    ) -> BoxFuture<'c, sqlx::Result<Look>>;

    /// Makes a notifier for a relay on `pool`.
    fn notifier(pool: &sqlx::Pool<Self>) -> Self::Notifier;

    /// Claims or renews the right to publish for the time of `lease`; `false` while another holder's claim lasts.
    fn claim<'c>(
        connection: &'c mut Self::Connection,
        holder: &'c str,
        lease: Duration,
    ) -> BoxFuture<'c, sqlx::Result<bool>>;

    /// Releases the right to publish.
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

    /// Counts the unpublished rows.
    fn counts(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<Counts>>;

    /// Returns the rows that were set aside, the oldest first, each with its error.
    fn refused(
        connection: &mut Self::Connection,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<Vec<(Row, String)>>>;

    /// Makes rows that were set aside wait for publication again, all of them or those with these ids. Returns their
    /// number.
    fn retry(connection: &mut Self::Connection, ids: Option<Vec<String>>)
    -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Deletes rows that were set aside, all of them or those with these ids. Returns their number.
    fn discard(
        connection: &mut Self::Connection,
        ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Deletes up to `limit` rows published before `before`. Returns their number.
    fn prune_outbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Adds a key to the inbox; `false` when the key, or its `former` form, was there already. Concurrent calls with
    /// the same key must wait for each other.
    fn note<'c>(
        connection: &'c mut Self::Connection,
        key: &'c str,
        former: &'c str,
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>>;

    /// Deletes up to `limit` keys added before `before`. Returns their number.
    fn prune_inbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Returns the kind and a text with the remedy for a database error; `None` for an error without a special text.
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)>;
}

/// The query of [`Dialect::counts`], the same in every database; each part has its own index.
const COUNTS: &str = "SELECT
    (SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NULL),
    (SELECT created FROM outbox WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT 1),
    (SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NOT NULL)";

/// The result of [`Dialect::meaning`] for a missing table.
const MISSING_TABLE: (ErrorKind, &str) =
    (ErrorKind::Config, "the table is missing; call `outbox::create_tables` at start-up");

/// Converts a database error to this crate's error.
pub(crate) fn explain<D: Dialect>(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| {
        let (kind, text) = match &error {
            sqlx::Error::PoolClosed => (ErrorKind::Closed, "the pool is closed"),
            sqlx::Error::PoolTimedOut => (
                ErrorKind::Unavailable,
                "no connection became free in time: the database does not respond or the pool is too small",
            ),
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                (ErrorKind::Corrupt, "the table has a value that this library did not write")
            }
            sqlx::Error::Configuration(_) => (ErrorKind::Config, "the database's URL or options are wrong"),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
                (ErrorKind::Unavailable, "the database cannot be reached")
            }
            sqlx::Error::Database(error) => {
                D::meaning(&**error).unwrap_or((ErrorKind::Unavailable, "the database returned an error"))
            }
            _ => (ErrorKind::Unavailable, "the database returned an error"),
        };
        Error::new(kind, text).during(operation).because(error)
    }
}

/// Creates the missing tables of outbox and inbox in one transaction.
///
/// # Errors
/// The error of the database, for example [`ErrorKind::Denied`] without permission to create tables.
pub async fn create_tables<D: Dialect>(pool: &sqlx::Pool<D>) -> Result<()> {
    let create = async {
        let mut transaction = pool.begin().await?;
        D::create_tables(&mut transaction).await?;
        transaction.commit().await
    };
    create.await.map_err(explain::<D>("create outbox and inbox"))
}

/// The present time in Unix milliseconds.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The time `age` before now, in Unix milliseconds.
pub(crate) fn ago(age: Duration) -> i64 {
    now().saturating_sub(bounds::signed_millis(age))
}
