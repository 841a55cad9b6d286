//! Tests the Redis transport against real servers: refused input, foreign entries, and the view of other
//! clients.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::broker::{group, message, open, refused};

mod failover;
mod foreign;
mod janitor;
mod lag;
mod promises;
mod refusals;
mod removed;

/// The shared server with a namespace that only this test uses.
async fn shared() -> (String, String) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let namespace = format!("it-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let server = test_servers::Redis::shared(test_servers::Generation::Old).await;
    (format!("{}?namespace={namespace}", server.url()), namespace)
}

/// A plain client's connection.
async fn plain(url: &str) -> redis::aio::MultiplexedConnection {
    let url = url.split('?').next().expect("a URL");
    let client = redis::Client::open(url).expect("a client");
    client.get_multiplexed_async_connection().await.expect("a connection")
}
