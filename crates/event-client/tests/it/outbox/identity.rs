//! Tests the identity by which the inbox recognizes a repeated event.

use super::*;

/// Records an effect for each event that was not handled before.
async fn book(
    inbox: Inbox<Sqlite>,
    Msg(order): Msg<OrderPlaced>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(mut tx) = inbox.begin().await? else { return Ok(()) };
    query("INSERT INTO effects VALUES (?)").bind(order.order_id as i64).execute(&mut *tx).await?;
    outbox::commit(tx).await?;
    Ok(())
}

async fn publish(t: &TestBus, source: &str, id: &str) {
    let bus = t.bus().with_settings(Settings { source: source.into(), ..Settings::default() }).unwrap();
    bus.publish(placed(1)).id(id).await.unwrap();
}

#[tokio::test]
async fn an_id_counts_within_its_source() {
    let (_folder, pool) = database().await;
    let t = TestBus::real_time(Service::new("books").on(book).with_state(pool.clone())).await;
    for (source, id) in [("/a", "1"), ("/b", "1"), ("/a", "1"), ("/a", "b:1"), ("/a:b", "1"), ("/b", "1")] {
        publish(&t, source, id).await;
    }
    t.until_idle().await;
    assert_eq!(count(&pool, EFFECTS).await, 4);
}

#[tokio::test]
async fn what_earlier_builds_noted_still_counts() {
    let (_folder, pool) = database().await;
    query("INSERT INTO inbox (key, handled) VALUES ('books.orders.placed:order-7', 0)")
        .execute(&pool)
        .await
        .unwrap();
    let t = TestBus::real_time(Service::new("books").on(book).with_state(pool.clone())).await;
    publish(&t, "/a", "order-7").await;
    publish(&t, "/a", "order-8").await;
    t.until_idle().await;
    assert_eq!(count(&pool, EFFECTS).await, 1);
}
