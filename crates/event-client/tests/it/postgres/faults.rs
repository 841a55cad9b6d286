//! Tests a server that is killed, paused and unreachable while events are staged and published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Stages events of `key` one after another until `stop` is set, each repeated under its id until it is
/// stored; returns their number.
async fn stage_on(pool: PgPool, key: u64, stop: Arc<AtomicBool>) -> i64 {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let stored = async {
            let mut tx = pool.begin().await?;
            let order = OrderPlaced { order_id: key, cents: n };
            let staged = outbox::stage(&mut tx, order).id(format!("{key}-{n}")).await;
            staged.map_err(sqlx::Error::config)?;
            tx.commit().await
        };
        match stored.await {
            Ok(()) => n += 1,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    n
}

/// Runs stagers and two relays while `trouble` happens; then every event must have been delivered, in order
/// per key.
async fn endure<T: Future<Output = ()>>(url: &str, bus: &'static str, trouble: impl FnOnce(PgPool) -> T) {
    let pool = PgPoolOptions::new().max_connections(8).connect(url).await.unwrap();
    outbox::create_tables(&pool).await.unwrap();
    let bus = memory(bus).await;
    let subscription = listen(&bus).await;
    let relay = || {
        let relay = outbox::Relay::new(pool.clone(), bus.clone()).lease(Duration::from_millis(500));
        relay.poll(Duration::from_millis(100)).batch(50).dedup(false)
    };
    let relays = [Working::start(relay()), Working::start(relay())];
    let stop = Arc::new(AtomicBool::new(false));
    let stagers: Vec<_> = (0..3).map(|key| tokio::spawn(stage_on(pool.clone(), key, stop.clone()))).collect();
    trouble(pool.clone()).await;
    stop.store(true, Ordering::SeqCst);
    let mut staged = Vec::new();
    for stager in stagers {
        staged.push(stager.await.unwrap());
    }
    let mut seen = vec![0; 3];
    while seen != staged {
        let order = next_order(&subscription).await;
        let next = &mut seen[order.order_id as usize];
        assert!(order.cents <= *next, "{} of {} came before {next}", order.cents, order.order_id);
        *next += i64::from(order.cents == *next);
    }
    until(&pool, WAITING, 0).await;
    for relay in relays {
        relay.stop().await;
    }
}

/// Waits until `more` further events have been published.
async fn progress(pool: &PgPool, more: i64) {
    const PUBLISHED: &str = "SELECT count(*) FROM outbox WHERE published IS NOT NULL";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut goal = None;
    loop {
        if let Ok(published) = query_scalar::<_, i64>(PUBLISHED).fetch_one(pool).await
            && published >= *goal.get_or_insert(published + more)
        {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no progress beyond {goal:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_and_restarted_loses_nothing() {
    let server = Postgres::options().start().await.unwrap();
    endure(&server.url(), "pg-restart", async |pool| {
        for _ in 0..3 {
            progress(&pool, 100).await;
            server.kill().await.unwrap();
            server.start().await.unwrap();
        }
        progress(&pool, 100).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_paused_and_cut_off_loses_nothing() {
    let server = Postgres::options().start().await.unwrap();
    let proxy = test_servers::Proxy::start(server.port()).await.unwrap();
    endure(&proxy.url(&server.url()), "pg-cut", async |pool| {
        for _ in 0..3 {
            progress(&pool, 50).await;
            proxy.cut();
            progress(&pool, 50).await;
            server.pause().unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            server.resume().unwrap();
        }
        progress(&pool, 50).await;
    })
    .await;
}
