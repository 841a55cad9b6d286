//! Publishes an event in a database transaction (outbox), and applies its effect once (inbox).
//!
//! ```console
//! $ cargo run -p event-client --example outbox
//! $ cargo run -p event-client --example outbox -- nats://localhost:4222
//! ```
//!
//! The database is a temporary SQLite file. Without an argument the bus is in the memory of this program.

use std::time::Duration;

use event_client::inbox::Inbox;
use event_client::message::MessageId;
use event_client::service::{Msg, Service};
use event_client::{Bus, Event, outbox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, SqlitePool};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "sales.made", version = 1, key = id)]
struct SaleMade {
    id: i64,
    cents: i64,
}

/// The row and the event are stored together, or neither is stored.
async fn sell(pool: &SqlitePool, sale: SaleMade, id: MessageId) -> Result<(), Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("INSERT INTO sales VALUES (?)").bind(sale.id).execute(&mut *tx).await?;
    outbox::stage(&mut tx, sale).id(id).await?;
    outbox::commit(tx).await?; // commits, and wakes the relay
    Ok(())
}

/// The bus may deliver an event more than once. The inbox stores its id in the same transaction as the effect.
async fn book(inbox: Inbox<Sqlite>, Msg(sale): Msg<SaleMade>) -> Result<(), Error> {
    let Some(mut tx) = inbox.begin().await? else { return Ok(()) }; // this event was handled before
    sqlx::query("UPDATE total SET cents = cents + ?").bind(sale.cents).execute(&mut *tx).await?;
    Ok(outbox::commit(tx).await?)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite:{}?mode=rwc", folder.path().join("shop.db").display());
    let pool = SqlitePool::connect(&file).await?;
    sqlx::raw_sql("CREATE TABLE sales (id INTEGER)").execute(&pool).await?;
    sqlx::raw_sql("CREATE TABLE total (cents INTEGER); INSERT INTO total VALUES (0)").execute(&pool).await?;
    outbox::create_tables(&pool).await?; // the tables of outbox and inbox

    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let books = Service::new("books").bus(bus.clone()).on(book).with_state(pool.clone()).start().await?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = outbox::Relay::new(pool.clone(), bus.clone()).run_until(async { drop(stopped.await) });
    let relay = tokio::spawn(relay); // publishes the staged events of committed transactions

    let sale = SaleMade { id: 1, cents: 500 };
    let id = MessageId::now();
    sell(&pool, sale.clone(), id.clone()).await?;
    bus.publish(sale).id(id).await?; // the same event once more, as after a crash
    while books.counts()["books.sales.made"].acked < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let cents: i64 = sqlx::query_scalar("SELECT cents FROM total").fetch_one(&pool).await?;
    assert_eq!(cents, 500);
    println!("delivered twice, booked once: {cents} cents");

    books.drain().await?;
    drop(stop);
    relay.await??;
    Ok(bus.close().await?)
}
