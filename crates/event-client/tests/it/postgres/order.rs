//! Tests which events a relay may read while transactions are open.

use event_client::outbox::{Dialect, Look};
use sqlx::{Connection, PgConnection, Postgres};

use super::*;

type Cursor = <Postgres as Dialect>::Cursor;

async fn look(connection: &mut PgConnection, cursor: &mut Cursor) -> (Vec<i64>, bool) {
    let Look { rows, open, .. } = Postgres::waiting(connection, cursor, 100).await.unwrap();
    let cents = |payload: &str| serde_json::from_str::<OrderPlaced>(payload).unwrap().cents;
    (rows.iter().map(|row| cents(&row.payload)).collect(), open)
}

fn order(cents: i64) -> OrderPlaced {
    OrderPlaced { order_id: 1, cents }
}

async fn start(name: &str) -> (PgPool, PgConnection, Cursor) {
    let (url, pool) = database(name).await;
    (pool, PgConnection::connect(&url).await.unwrap(), Cursor::default())
}

#[tokio::test]
async fn what_was_staged_earlier_comes_first_though_it_commits_later() {
    let (pool, mut eye, mut cursor) = start("order_later").await;
    let mut first = pool.begin().await.unwrap();
    outbox::stage(&mut first, order(1)).await.unwrap();
    stage_all(&pool, [order(2)]).await;
    assert_eq!(look(&mut eye, &mut cursor).await, (vec![], true));
    first.commit().await.unwrap();
    assert_eq!(look(&mut eye, &mut cursor).await, (vec![1, 2], false));
}

#[tokio::test]
async fn what_is_rolled_back_holds_up_nothing_any_more() {
    let (pool, mut eye, mut cursor) = start("order_back").await;
    let mut first = pool.begin().await.unwrap();
    outbox::stage(&mut first, order(1)).await.unwrap();
    stage_all(&pool, [order(2)]).await;
    assert_eq!(look(&mut eye, &mut cursor).await.0, [0; 0]);
    first.rollback().await.unwrap();
    assert_eq!(look(&mut eye, &mut cursor).await.0, [2]);
}

#[tokio::test]
async fn writers_that_never_pause_hold_up_nothing_for_ever() {
    let (pool, mut eye, mut cursor) = start("order_busy").await;
    let mut open = pool.begin().await.unwrap();
    outbox::stage(&mut open, order(0)).await.unwrap();
    let mut seen = Vec::new();
    for cents in 1..20 {
        // The next transaction begins before this one ends: one is always open.
        let mut next = pool.begin().await.unwrap();
        outbox::stage(&mut next, order(cents)).await.unwrap();
        open.commit().await.unwrap();
        open = next;
        let Look { rows, open, .. } = Postgres::waiting(&mut eye, &mut cursor, 100).await.unwrap();
        assert!(open || !rows.is_empty());
        seen.extend(rows.iter().map(|row| row.id.clone()));
        let positions = rows.iter().map(|row| row.position).collect();
        Postgres::mark(&mut eye, positions, 1).await.unwrap();
        assert!(seen.len() as i64 >= cents - 1, "{} seen of {cents} committed", seen.len());
    }
    let staged = "SELECT id FROM outbox ORDER BY position";
    let staged: Vec<String> = sqlx::query_scalar(staged).fetch_all(&pool).await.unwrap();
    assert!(staged.starts_with(&seen), "in order, none left out");
}

#[tokio::test]
async fn those_who_only_read_or_write_elsewhere_hold_up_nothing() {
    let (pool, mut eye, mut cursor) = start("order_others").await;
    let mut elsewhere = pool.begin().await.unwrap();
    query("INSERT INTO effects VALUES (1)").execute(&mut *elsewhere).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    query("SELECT * FROM outbox FOR SHARE").execute(&mut *reader).await.unwrap();
    stage_all(&pool, [order(1)]).await;
    assert_eq!(look(&mut eye, &mut cursor).await.0, [1]);
    drop((elsewhere, reader));
}

#[tokio::test]
async fn many_staged_at_once_keep_their_order_and_known_ids_are_skipped() {
    let (pool, mut eye, mut cursor) = start("order_many").await;
    let ids = stage_all(&pool, (0..2500).map(order)).await;
    let mut tx = pool.begin().await.unwrap();
    outbox::stage(&mut tx, order(9999)).id(ids[7].clone()).await.unwrap();
    tx.commit().await.unwrap();
    let Look { rows, .. } = Postgres::waiting(&mut eye, &mut cursor, 5000).await.unwrap();
    let staged: Vec<_> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>(), staged);
}
