//! Tests the inbox with concurrent duplicates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_client::inbox::{self, Inbox};
use event_client::service::{FromRef, Handler, Msg, RetryPolicy, Service, State};
use event_client::testing::TestBus;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_duplicates_one_has_its_effect() {
    let (_, pool) = database("inbox_race").await;
    for event in 0..20 {
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let mut tx = pool.begin().await.unwrap();
                    let first = inbox::once(&mut tx, &format!("books:{event}")).await.unwrap();
                    if !first {
                        return false;
                    }
                    query("INSERT INTO effects VALUES ($1)").bind(n).execute(&mut *tx).await.unwrap();
                    // Every other transaction rolls back after its effect: the next one takes over.
                    if (n + event) % 2 == 0 {
                        tx.rollback().await.unwrap();
                        return false;
                    }
                    tx.commit().await.unwrap();
                    true
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += u32::from(task.await.unwrap());
        }
        assert_eq!(done, 1, "event {event}");
    }
    assert_eq!(count(&pool, EFFECTS).await, 20);
}

#[tokio::test]
async fn a_handler_s_effects_and_events_happen_once() {
    #[derive(Clone)]
    struct App(PgPool, Arc<AtomicUsize>);
    impl FromRef<App> for PgPool {
        fn from_ref(app: &App) -> Self {
            app.0.clone()
        }
    }
    async fn pay(
        inbox: Inbox<sqlx::Postgres>,
        State(App(_, calls)): State<App>,
        Msg(order): Msg<OrderPlaced>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(mut tx) = inbox.begin().await? else { return Ok(()) };
        query("INSERT INTO effects VALUES ($1)").bind(order.order_id as i64).execute(&mut *tx).await?;
        outbox::stage(&mut tx, crate::events::OrderPaid { order_id: order.order_id }).await?;
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err("fails before the commit".into());
        }
        outbox::commit(tx).await?;
        Ok(())
    }
    let (_, pool) = database("inbox_handler").await;
    let policy = RetryPolicy::default().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let app = App(pool.clone(), Arc::default());
    let t = TestBus::real_time(Service::new("billing").on(pay.retry(policy)).with_state(app)).await;
    let sent = t.bus().publish(placed(1)).into_message().unwrap();
    for _ in 0..3 {
        t.bus().publish_message(sent.clone()).await.unwrap();
    }
    t.until_idle().await;
    assert_eq!((count(&pool, EFFECTS).await, count(&pool, WAITING).await), (1, 1));
}

#[tokio::test]
async fn old_keys_are_pruned_in_batches() {
    let (_, pool) = database("inbox_prune").await;
    query("INSERT INTO inbox SELECT 'old:' || n, n FROM generate_series(1, 2500) n")
        .execute(&pool)
        .await
        .unwrap();
    let mut tx = pool.begin().await.unwrap();
    assert!(inbox::once(&mut tx, "new").await.unwrap());
    assert!(!inbox::once(&mut tx, "new").await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(inbox::prune(&pool, inbox::DEFAULT_TTL).await.unwrap(), 2500);
    assert_eq!(count(&pool, "SELECT count(*) FROM inbox").await, 1);
}
