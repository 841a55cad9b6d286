//! Tests of the test servers: they start, keep their data, refuse unauthorized clients, and end with their
//! test.

mod configurations;
mod life;
mod nats;
mod orphans;
mod postgres;
mod proxy;
mod rabbit;
mod redis;

use std::time::Duration;

/// How long an answer may take that arrives at once on an idle machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
