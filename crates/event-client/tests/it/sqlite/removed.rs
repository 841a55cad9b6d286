//! Tests that another process deletes a group's row while it has members: they create it again at the group's
//! known position, or report that they may not.

use event_client::subscription::Health;
use sqlx::{ConnectOptions, Connection};

use super::*;

async fn delete_row(path: &Path) {
    let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    sqlx::raw_sql("DELETE FROM consumer_group").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_row_is_made_again_where_the_group_was() {
    for keyed in [false, true] {
        let (_folder, path) = file();
        let bus = open(&path).await;
        bus.publish(message("orders.placed.v1", "before the group")).await.unwrap();
        let mut spec = group("g", 4);
        spec.keyed = keyed;
        let member = bus.subscribe(spec.clone()).await.unwrap();
        for text in ["settled", "in hand"] {
            bus.publish(message("orders.placed.v1", text)).await.unwrap();
        }
        next(&member).await.ack().await.unwrap();
        let in_hand = next(&member).await;
        delete_row(&path).await;
        bus.publish(message("orders.placed.v1", "after")).await.unwrap();
        let delivery = next(&member).await;
        assert_eq!((text(&delivery), text(&in_hand)), ("after".to_owned(), "in hand".to_owned()));
        delivery.ack().await.unwrap();
        in_hand.ack().await.unwrap();
        until(&bus, "g", |status| (status.waiting, status.in_flight) == (0, 0)).await;
        member.health().wait_for(|health| *health == Health::Live).await.unwrap();
        // When the group is deleted through the library, it stays deleted, and its members end.
        bus.admin().delete_group(Group::new("g").unwrap()).await.unwrap();
        assert!(member.next().await.is_none());
        assert!(bus.admin().groups().await.unwrap().is_empty());
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_may_not_be_made_again_is_missed_loudly() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    drop(bus.subscribe(group("g", 4)).await.unwrap());
    for mode in ["off", "verify"] {
        let careful = open_with(&path, &format!("?provision={mode}")).await.unwrap();
        let member = careful.subscribe(group("g", 4)).await.unwrap();
        delete_row(&path).await;
        let told = |health: &Health| matches!(health, Health::Rebuilding(why) if why.contains("provision"));
        member.health().wait_for(told).await.unwrap();
        let mut topology = event_client::transport::Topology::default();
        topology.add(&group("g", 4));
        let changes = bus.admin().plan(topology.clone()).await.unwrap();
        assert_eq!(changes.iter().map(|change| change.object.as_str()).collect::<Vec<_>>(), ["group g"]);
        bus.admin().apply(topology).await.unwrap();
        careful.close().await.unwrap();
    }
    bus.close().await.unwrap();
}
