//! What outbox and inbox ask of a database: one trait, one implementation a database.

mod sqlite;

use futures_util::future::BoxFuture;

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

/// The statements of one database. Times are Unix milliseconds; every call is one statement or one transaction.
pub trait Dialect: sqlx::Database {
    /// Creates the tables of outbox and inbox where they are missing.
    fn create_tables(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Adds a row to the outbox; a known id changes nothing.
    fn stage(connection: &mut Self::Connection, row: Row) -> BoxFuture<'_, sqlx::Result<()>>;

    /// The oldest rows that are neither published nor set aside. It must never show a row before all rows
    /// staged earlier under the same key are committed or gone.
    fn waiting(connection: &mut Self::Connection, limit: u32) -> BoxFuture<'_, sqlx::Result<Vec<Row>>>;

    /// Takes or renews the right to publish until `until`; `false` while another holder's lasts.
    fn claim<'c>(
        connection: &'c mut Self::Connection,
        holder: &'c str,
        now: i64,
        until: i64,
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

    /// Deletes up to `limit` rows published before `before`; answers how many.
    fn prune_outbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Notes a key in the inbox; `false` when it was there. Concurrent calls with one key must wait for each other.
    fn note<'c>(
        connection: &'c mut Self::Connection,
        key: &'c str,
        now: i64,
    ) -> BoxFuture<'c, sqlx::Result<bool>>;

    /// Deletes up to `limit` keys noted before `before`; answers how many.
    fn prune_inbox(
        connection: &mut Self::Connection,
        before: i64,
        limit: u32,
    ) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Whether an error says that a table does not exist.
    fn is_missing_table(error: &dyn sqlx::error::DatabaseError) -> bool;
}

/// A database error in the crate's words.
pub(crate) fn explain<D: Dialect>(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| {
        let (kind, text) = match &error {
            sqlx::Error::PoolClosed => (ErrorKind::Closed, "the pool is closed"),
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                (ErrorKind::Corrupt, "the table holds what this library did not write")
            }
            sqlx::Error::Database(error) if D::is_missing_table(&**error) => {
                (ErrorKind::Config, "the table is missing; call `outbox::create_tables` at start-up")
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
pub(crate) fn ago(age: std::time::Duration) -> i64 {
    now().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}
