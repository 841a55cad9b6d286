//! Inbox: a handler's effects on its own database happen once, even when the event is delivered again.
//!
//! The bus delivers at least once. [`Inbox::begin`] opens a transaction that already holds the key of this handler
//! and event. The effects and the key are committed together, and every later delivery finds the key. Events that the
//! handler emits belong in the [outbox](crate::outbox) of the same transaction: a direct publish could be lost between
//! the commit and the acknowledgement.
//!
//! An event is identified by its source and its id. Earlier builds stored the id alone, and keys that they stored are
//! still found. Earlier builds do not find the keys of this build: where a repeated effect does harm, stop the old
//! members of a service before its new members start.
//!
//! ```
//! use event_client::inbox::Inbox;
//! use event_client::service::{Msg, Service};
//! use event_client::{Event, outbox, testing::TestBus};
//! use sqlx::{Sqlite, SqlitePool};
//! # use event_client::event::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! # #[event(name = "orders.placed", version = 1)]
//! # struct OrderPlaced { cents: i64 }
//!
//! async fn book(inbox: Inbox<Sqlite>, Msg(order): Msg<OrderPlaced>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let Some(mut tx) = inbox.begin().await? else { return Ok(()) }; // already handled
//!     sqlx::query("UPDATE account SET cents = cents + ?").bind(order.cents).execute(&mut *tx).await?;
//!     outbox::commit(tx).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # sqlx::raw_sql("CREATE TABLE account (cents INTEGER); INSERT INTO account VALUES (0)").execute(&pool).await?;
//! outbox::create_tables(&pool).await?;
//! let t = TestBus::real_time(Service::new("books").on(book).with_state(pool.clone())).await;
//! for _ in 0..2 {
//!     t.bus().publish(OrderPlaced { cents: 100 }).id("order-7").await?;
//! }
//! t.until_idle().await;
//! let cents: i64 = sqlx::query_scalar("SELECT cents FROM account").fetch_one(&pool).await?;
//! assert_eq!(cents, 100);
//! # Ok(()) }
//! ```

use std::fmt;
use std::future::Future;
use std::time::Duration;

use smol_str::SmolStr;
use sqlx::{Pool, Transaction};

use crate::service::{FromIncoming, FromRef, Incoming};
use crate::sql::{ago, explain, now};
use event_transport::error::Result;

pub use crate::sql::{Dialect, create_tables};

/// The shortest useful time to keep keys: longer than any redelivery or replay is possible. Seven days.
pub const DEFAULT_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const PRUNE: u32 = 1000;

/// Stores `key` within `transaction`. Returns `false` when the key was stored before: the effects must not be repeated.
///
/// Use a key that is the same in every attempt and names handler and event, such as
/// [`Attempt::idempotency_key`](crate::service::Attempt::idempotency_key). Store it before any other statement: a second
/// consumer of the same event then waits here until the first has committed or failed.
///
/// # Errors
/// The database's error; retry the event.
pub async fn once<D: Dialect>(transaction: &mut Transaction<'_, D>, key: &str) -> Result<bool> {
    D::note(transaction, key, key, now()).await.map_err(explain::<D>("inbox"))
}

/// Deletes keys older than `age` and returns their number.
///
/// # Errors
/// The database's error; keys that were deleted before it stay deleted.
pub async fn prune<D: Dialect>(pool: &Pool<D>, age: Duration) -> Result<u64> {
    let sql = explain::<D>("prune inbox");
    let before = ago(age);
    let mut pruned = 0;
    loop {
        // Short statements, so that handlers can take the writer's lock between them.
        let mut connection = pool.acquire().await.map_err(&sql)?;
        let deleted = D::prune_inbox(&mut connection, before, PRUNE).await.map_err(&sql)?;
        pruned += deleted;
        if deleted < u64::from(PRUNE) {
            return Ok(pruned);
        }
    }
}

/// Prunes periodically until `shutdown` resolves: every tenth of `age`, at most once a minute and at least once an hour.
/// A failure is logged, and the next run tries again.
pub async fn prune_until<D: Dialect>(pool: Pool<D>, age: Duration, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    let every = (age / 10).clamp(Duration::from_secs(60), Duration::from_secs(3600));
    loop {
        if let Err(error) = prune(&pool, age).await {
            tracing::warn!(%error, "the inbox was not pruned");
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Extractor: the inbox entry of this handler for this event. The state must provide a `Pool<D>` ([`FromRef`]).
pub struct Inbox<D: Dialect> {
    pool: Pool<D>,
    key: SmolStr,
    /// The event's key in the form of earlier builds.
    former: SmolStr,
}

impl<D: Dialect> Inbox<D> {
    /// Begins a transaction; when it commits, the event counts as handled. `None` when the event was handled before.
    ///
    /// # Errors
    /// The database's error; return it, and the event is retried.
    pub async fn begin(&self) -> Result<Option<Transaction<'static, D>>> {
        let mut transaction = self.pool.begin().await.map_err(explain::<D>("inbox"))?;
        let noted = D::note(&mut transaction, &self.key, &self.former, now());
        Ok(noted.await.map_err(explain::<D>("inbox"))?.then_some(transaction))
    }

    /// The key: group, and source and id of the event.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl<S, D: Dialect> FromIncoming<S> for Inbox<D>
where
    Pool<D>: FromRef<S>,
{
    fn from_incoming(incoming: &Incoming, state: &S) -> Result<Self> {
        let (key, former) = (incoming.idempotency_key(), incoming.former_key());
        Ok(Self { pool: Pool::from_ref(state), key, former })
    }
}

impl<D: Dialect> fmt::Debug for Inbox<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("key", &self.key).finish_non_exhaustive()
    }
}
