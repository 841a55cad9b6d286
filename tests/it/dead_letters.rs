//! Tests `backbone dlq`: a service's dead letters are listed, shown, replayed and dropped.

use std::time::Duration;

use backbone_tests::{Cli, eventually};
use event_client::service::{Msg, Outcome, Service, State};
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1)]
struct OrderPlaced {
    order_id: u64,
}

/// Handles an order once the bank is open; before that it rejects the order at once.
async fn charge(State(open): State<watch::Receiver<bool>>, Msg(order): Msg<OrderPlaced>) -> Outcome {
    if *open.borrow() {
        Outcome::Ack
    } else {
        Outcome::reject(format!("no bank for order {}\u{1b}[2J", order.order_id))
    }
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let (bank, opens) = watch::channel(false);
    let bus = Bus::connect(cli.url()).await.unwrap();
    let service =
        Service::new("billing").bus(bus.clone()).on(charge).with_state(opens).start().await.unwrap();
    for order_id in 1..=3 {
        bus.publish(OrderPlaced { order_id }).await.unwrap();
    }
    let letters = async || cli.json(&["dlq", "ls", "--group", "billing.orders.placed"]).await;
    eventually(Duration::from_secs(30), "three dead letters", async || letters().await.len() == 3).await;
    let listed = letters().await;
    assert_eq!((&listed[0]["reason"], &listed[0]["attempts"]), (&json!("permanent"), &json!(1)));
    let id = |number: usize| listed[number]["id"].as_str().unwrap();

    let table = cli.run(&["dlq", "ls"]).await;
    assert!(
        table.ok && table.out.lines().count() == 4 && table.out.contains("no bank for order 1"),
        "{table:?}"
    );
    assert!(!table.out.contains('\u{1b}'), "an error text does not control the terminal: {table:?}");
    let shown = cli.json(&["dlq", "show", id(0)]).await;
    assert_eq!((&shown[0]["data"], &shown[0]["dead_letter"]["id"]), (&json!({"order_id": 1}), &json!(id(0))));
    let shown = cli.run(&["dlq", "show", id(0)]).await;
    assert!(
        shown.ok && shown.out.contains("billing.orders.placed") && shown.out.contains(r#"{"order_id":1}"#)
    );
    assert_eq!(cli.json(&["dlq", "ls", "--subject", "invoices.>"]).await.len(), 0);

    assert_eq!(cli.json(&["dlq", "drop", id(0)]).await[0], json!({"dropped": 1}));
    // Replayed while the bank is closed, the letter becomes a dead letter again; once it is open, all are
    // handled.
    bank.send(true).unwrap();
    assert_eq!(cli.json(&["dlq", "replay", id(1)]).await[0], json!({"replayed": 1}));
    assert_eq!(
        cli.json(&["dlq", "replay", "--group", "billing.orders.placed"]).await[0],
        json!({"replayed": 1})
    );
    eventually(Duration::from_secs(30), "both to be handled", async || {
        let lag = cli.json(&["lag", "billing.orders.placed"]).await;
        lag[0]["waiting"] == 0 && lag[0]["in_flight"] == 0 && lag[0]["dead"] == 0
    })
    .await;
    assert_eq!(cli.json(&["dlq", "drop", "--all"]).await[0], json!({"dropped": 0}));
    service.drain().await.unwrap();
    bus.close().await.unwrap();
}
