//! Tests outbox and inbox on a real PostgreSQL server.

mod crash;
mod faults;
mod inbox;
mod order;
mod refusals;
mod relay;

use std::time::Duration;

use event_client::Bus;
use event_client::envelope::Envelope;
use event_client::message::MessageId;
use event_client::outbox;
use event_client::subscription::Subscription;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{query, query_scalar};
use test_servers::Postgres;

use crate::events::{OrderPlaced, placed};
use crate::outbox::{Working, faulty, listen, memory, next};

/// Creates a database on the server that the tests share, with the tables; returns its URL and a pool.
async fn database(name: &str) -> (String, PgPool) {
    let url = Postgres::shared().await.database(name).await.unwrap();
    let pool = open(&url).await;
    outbox::create_tables(&pool).await.unwrap();
    query("CREATE TABLE effects (id BIGINT NOT NULL)").execute(&pool).await.unwrap();
    (url, pool)
}

async fn open(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(6).connect(url).await.unwrap()
}

const WAITING: &str = "SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NULL";
const EFFECTS: &str = "SELECT count(*) FROM effects";
/// Counts the relays that sleep and wait for a wake-up.
const ARMED: &str = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND datname = current_database()";

async fn count(pool: &PgPool, what: &'static str) -> i64 {
    query_scalar(what).fetch_one(pool).await.unwrap()
}

/// Waits for a condition that another task or process establishes.
async fn until(pool: &PgPool, what: &'static str, wanted: i64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while count(pool, what).await != wanted {
        assert!(tokio::time::Instant::now() < deadline, "{what} is {} not {wanted}", count(pool, what).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn stage_all(pool: &PgPool, orders: impl IntoIterator<Item = OrderPlaced>) -> Vec<MessageId> {
    let mut tx = pool.begin().await.unwrap();
    let ids = outbox::stage_all(&mut tx, orders).await.unwrap();
    outbox::commit(tx).await.unwrap();
    ids
}

async fn next_order(subscription: &Subscription) -> OrderPlaced {
    Envelope::read(&*next(subscription).await).unwrap().decode().unwrap()
}

/// A relay with a poll interval of an hour: it publishes an event only because it was woken.
fn sleeper(pool: &PgPool, bus: &Bus) -> outbox::Relay<sqlx::Postgres> {
    outbox::Relay::new(pool.clone(), bus.clone()).poll(Duration::from_secs(3600))
}
