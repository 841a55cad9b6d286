//! Outbox: publishes events if, and only if, the transaction that staged them commits.
//!
//! [`stage`] writes the event into a table of the service's own database, in the caller's transaction. A [`Relay`]
//! that runs beside the service publishes the committed events, in order per key. When a crash happens between a
//! publish and the statement that marks the row as published, the events are published again with the same ids; the
//! bus's dedup window or an [`inbox`](crate::inbox) recognises them.
//!
//! ```
//! use event_client::{Bus, Event, outbox};
//! # use event_client::event::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! # #[event(name = "orders.placed", version = 1, key = order_id)]
//! # struct OrderPlaced { order_id: i64 }
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # sqlx::query("CREATE TABLE orders (id INTEGER)").execute(&pool).await?;
//! # let bus = Bus::connect("memory:").await?;
//! # let subject = event_client::subject::Pattern::new("orders.>")?;
//! # let spec = event_client::transport::Subscribe::broadcast([subject]);
//! # let published = bus.subscribe(spec).await?;
//! outbox::create_tables(&pool).await?;
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let relay = outbox::Relay::new(pool.clone(), bus.clone());
//! let relay = tokio::spawn(relay.run_until(async { stopped.await.unwrap_or_default() }));
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *tx).await?;
//! outbox::stage(&mut tx, OrderPlaced { order_id: 7 }).await?;
//! outbox::commit(tx).await?; // `tx.commit()` does too; this wakes the relay at the right moment
//!
//! # assert_eq!(published.next().await.unwrap().message().key.as_deref(), Some("7"));
//! drop(stop);
//! relay.await??;
//! # Ok(()) }
//! ```

mod claim;
mod relay;
mod send;
mod set_aside;
mod stage;

use std::sync::LazyLock;

use tokio::sync::watch;

pub use crate::sql::{Counts, Dialect, Look, Notifier, Row, create_tables};
pub use relay::Relay;
pub use set_aside::{SetAside, counts, discard, retry, set_aside};
pub use stage::{Stage, stage, stage_all};

use event_transport::error::Result;

/// Counts the stagings and commits of this process, to wake the relays that run in it.
static STAGED: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

fn announce() {
    STAGED.send_modify(|count| *count += 1);
}

/// Commits a transaction and wakes the relays of this process.
///
/// # Errors
/// A database error; then nothing of the transaction is stored.
pub async fn commit<D: Dialect>(transaction: sqlx::Transaction<'_, D>) -> Result<()> {
    transaction.commit().await.map_err(crate::sql::explain::<D>("commit"))?;
    announce();
    Ok(())
}
