//! Outbox: events that are published if, and only if, the transaction that staged them commits.
//!
//! [`stage`] writes the event into a table of the service's own database, in the caller's transaction. A [`Relay`]
//! beside the service publishes what was committed, in order per key. A crash between publishing and noting it
//! repeats events under the same ids, which the bus's dedup window or an [`inbox`](crate::inbox) recognises.
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

use crate::error::Result;

/// Counts what this process staged, to wake the relays that run in it.
static STAGED: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

fn announce() {
    STAGED.send_modify(|count| *count += 1);
}

/// Commits a transaction and wakes this process's relays.
///
/// # Errors
/// What the database says; then nothing of the transaction is stored.
pub async fn commit<D: Dialect>(transaction: sqlx::Transaction<'_, D>) -> Result<()> {
    transaction.commit().await.map_err(crate::sql::explain::<D>("commit"))?;
    announce();
    Ok(())
}
