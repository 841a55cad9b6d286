//! Tests that `backbone dlq` shows a dead letter's event and the flow to which it belongs.

use backbone_tests::Cli;
use event_client::delivery::{Reason, Rejection};
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::Subscribe;
use event_client::{Bus, ErrorKind};
use serde_json::json;

/// Makes a dead letter of a structured event, and one of a message that is not an event.
async fn bury(cli: &Cli) -> Result<(), event_client::Error> {
    let bus = Bus::connect(cli.url()).await?;
    let spec = Subscribe::group(Group::new("billing")?, [Pattern::new("orders.>")?]);
    let subscription = bus.subscribe(spec).await?;
    let event = json!({
        "specversion": "1.0", "id": "the-order", "source": "/shop", "type": "orders.placed.v1",
        "correlationid": "the-flow", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "data": { "order_id": 7 },
    });
    for body in [event.to_string(), "no event".to_owned()] {
        let message = Message::new(Subject::new("orders.placed.v1")?, "application/cloudevents+json", body);
        bus.publish_message(message).await?;
        let closed = || event_client::Error::new(ErrorKind::Closed, "the subscription ended");
        let delivery = subscription.next().await.ok_or_else(closed)?;
        delivery.reject(Rejection::new(Reason::Permanent, "card declined")).await?;
    }
    bus.close().await
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_its_event_and_its_flow() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    bury(&cli).await.unwrap();
    let letters = cli.json(&["dlq", "ls"]).await;
    let (event, other) = (&letters[0], &letters[1]);
    assert_eq!(event["event_id"], "the-order");
    assert_eq!(event["correlation_id"], "the-flow");
    assert_eq!(event["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!(other["event_id"].is_string() && other["correlation_id"].is_null(), "{other}");

    let id = event["id"].as_str().unwrap();
    let shown = cli.run(&["dlq", "show", id]).await;
    assert!(shown.ok, "{shown:?}");
    for (name, value) in [
        ("event id", "the-order"),
        ("correlation", "the-flow"),
        ("trace", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("error", "card declined"),
    ] {
        let line =
            shown.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{shown:?}"));
        assert!(line.ends_with(value), "{line}");
    }
    let detail = cli.json(&["dlq", "show", id]).await;
    assert_eq!(detail[0]["dead_letter"]["event_id"], "the-order");
    assert_eq!(detail[0]["dead_letter"]["correlation_id"], "the-flow");
    let unreadable = cli.run(&["dlq", "show", other["id"].as_str().unwrap()]).await;
    assert!(unreadable.ok && unreadable.out.contains("undecodable"), "{unreadable:?}");
}
