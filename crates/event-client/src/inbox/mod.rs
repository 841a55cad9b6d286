//! Inbox: the effects of a handler on its own database happen once, however often the event comes.
//!
//! The bus delivers at least once. [`Inbox::begin`] opens a transaction that already holds the key of this handler
//! and event; when the effects are committed, so is the key, and every later delivery finds it. What the handler
//! emits belongs into the [outbox](crate::outbox) of the same transaction: a direct publish could be lost between
//! the commit and the acknowledgement.
//!
//! An event is known by its source and its id. Earlier builds noted the id alone: what they noted still counts. They
//! do not know the keys of this one, so let the old members of a service end before its new ones begin if an effect
//! that happens twice does harm.
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
//!     let Some(mut tx) = inbox.begin().await? else { return Ok(()) }; // done before
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
//! t.settled().await;
//! let cents: i64 = sqlx::query_scalar("SELECT cents FROM account").fetch_one(&pool).await?;
//! assert_eq!(cents, 100);
//! # Ok(()) }
//! ```

use std::fmt;
use std::future::Future;
use std::time::Duration;

use smol_str::SmolStr;
use sqlx::{Pool, Transaction};

use crate::error::Result;
use crate::service::{FromIncoming, FromRef, Incoming};
use crate::sql::{ago, explain, now};

pub use crate::sql::{Dialect, create_tables};

/// How long keys should be kept at least: longer than anything can be redelivered or replayed. Seven days.
pub const DEFAULT_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const PRUNE: u32 = 1000;

/// Notes `key` within `transaction`; `false` when it was noted before, and then the effects must not happen again.
///
/// Use a key that is stable over attempts and names handler and event:
/// [`Attempt::key`](crate::service::Attempt::key) does. Note it before any other statement: a second consumer of
/// the same event then waits here until the first has committed or failed.
///
/// # Errors
/// What the database says; try the event again.
pub async fn once<D: Dialect>(transaction: &mut Transaction<'_, D>, key: &str) -> Result<bool> {
    D::note(transaction, key, key, now()).await.map_err(explain::<D>("inbox"))
}

/// Deletes keys older than `age`; answers how many.
///
/// # Errors
/// What the database says; what was deleted until then stays so.
pub async fn prune<D: Dialect>(pool: &Pool<D>, age: Duration) -> Result<u64> {
    let sql = explain::<D>("prune inbox");
    let before = ago(age);
    let mut pruned = 0;
    loop {
        // A short statement each, so that handlers get their turn at the writer's lock.
        let mut connection = pool.acquire().await.map_err(&sql)?;
        let deleted = D::prune_inbox(&mut connection, before, PRUNE).await.map_err(&sql)?;
        pruned += deleted;
        if deleted < u64::from(PRUNE) {
            return Ok(pruned);
        }
    }
}

/// Prunes now and then until `shutdown` resolves: every tenth of `age`, at most once a minute and at least once
/// an hour. A failure is logged and tried again the next time.
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

/// Extractor: this handler's place for this event in the inbox. The state must give a `Pool<D>`
/// ([`FromRef`]).
pub struct Inbox<D: Dialect> {
    pool: Pool<D>,
    key: SmolStr,
    /// As earlier builds noted the event's key.
    former: SmolStr,
}

impl<D: Dialect> Inbox<D> {
    /// A transaction in which the event counts as handled once it commits; `None` when it was handled before.
    ///
    /// # Errors
    /// What the database says; return it, and the event is tried again.
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
