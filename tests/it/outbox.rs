//! Tests `backbone outbox` on both databases, with events that the bus refused.

use backbone_tests::Cli;
use event_client::outbox::{self, Dialect};
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Pool;
use sqlx::postgres::PgPool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
struct OrderPlaced {
    order_id: u64,
    note: String,
}

/// Three events that are too large for the bus are set aside; then the command line retries or deletes each.
async fn decide<D: Dialect>(pool: Pool<D>, url: &str, bus: &str) {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let missing = cli.run(&["outbox", "ls", "--database", url]).await;
    assert!(!missing.ok && missing.err.contains("create_tables"), "{missing:?}");
    outbox::create_tables(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let event = |order_id| OrderPlaced { order_id, note: "x".repeat(2000) };
    let ids = outbox::stage_all(&mut tx, (0..3).map(event)).await.unwrap();
    outbox::commit(tx).await.unwrap();
    let waiting = cli.json(&["outbox", "ls", "--database", url]).await;
    assert_eq!((&waiting[0]["waiting"], &waiting[0]["set_aside"]), (&json!(3), &json!(0)));

    let bus = Bus::connect(bus).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = outbox::Relay::new(pool.clone(), bus);
    let relay = tokio::spawn(relay.run_until(async { stopped.await.unwrap_or_default() }));
    backbone_tests::eventually(std::time::Duration::from_secs(30), "all are set aside", async || {
        outbox::counts(&pool).await.unwrap().set_aside == 3
    })
    .await;
    drop(stop);
    relay.await.unwrap().unwrap();

    let listed = cli.json(&["outbox", "ls", "--database", url]).await;
    assert_eq!(listed.len(), 4);
    assert_eq!((&listed[1]["id"], &listed[1]["key"]), (&json!(ids[0].to_string()), &json!("0")));
    assert!(listed[1]["error"].as_str().unwrap().contains("600"), "{}", listed[1]);
    let undecided = cli.run(&["outbox", "drop", "--database", url]).await;
    assert!(!undecided.ok && undecided.err.contains("<IDS>"), "{undecided:?}");
    let (first, second) = (ids[0].to_string(), ids[1].to_string());
    assert_eq!(cli.json(&["outbox", "drop", &first, "--database", url]).await[0]["dropped"], 1);
    assert_eq!(cli.json(&["outbox", "retry", &second, "--database", url]).await[0]["retried"], 1);
    assert_eq!(cli.json(&["outbox", "drop", "--all", "--database", url]).await[0]["dropped"], 1);
    let left = cli.json(&["outbox", "ls", "--database", url]).await;
    assert_eq!((left.len(), &left[0]["waiting"], &left[0]["set_aside"]), (1, &json!(1), &json!(0)));
}

#[tokio::test]
async fn events_set_aside_on_postgres_are_listed_retried_and_dropped() {
    let url = test_servers::Postgres::shared().await.database("outbox_cli").await.unwrap();
    decide(PgPool::connect(&url).await.unwrap(), &url, "memory:cli-pg?max_payload=600").await;
}

#[tokio::test]
async fn events_set_aside_on_sqlite_are_listed_retried_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("service.db");
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    decide(pool, &format!("sqlite:{}", file.display()), "memory:cli-sqlite?max_payload=600").await;
}

#[tokio::test]
async fn a_wrong_database_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    for (url, text) in [
        ("postgres://clerk:hunter2@127.0.0.1:1/x", "cannot open the PostgreSQL database"),
        ("mysql://clerk:hunter2@127.0.0.1:1/x", "postgres://"),
        ("sqlite:/nowhere/service.db", "/nowhere/service.db"),
    ] {
        let said = cli.run(&["outbox", "ls", "--database", url]).await;
        assert!(!said.ok && said.err.contains(text) && !said.err.contains("hunter2"), "{said:?}");
    }
}
