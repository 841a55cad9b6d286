//! Tests atomic batches on a server that fsyncs each message: order, positions, and a separate outcome for
//! each message.

use async_nats::jetstream;
use event_client::ErrorKind;
use event_client::confirm::Confirm;
use event_client::message::Position;
use event_client::transport::{Receipt, Start};
use futures_util::StreamExt;
use test_servers::{Generation, Nats};

use super::{group, message, open, plain};

/// Awaits all confirms together and returns each outcome.
async fn outcomes(confirms: Vec<Confirm<Receipt>>) -> Vec<Result<Receipt, ErrorKind>> {
    futures_util::future::join_all(confirms)
        .await
        .into_iter()
        .map(|outcome| outcome.map_err(|error| error.kind()))
        .collect()
}

#[tokio::test]
async fn a_window_of_publishes_shares_a_batch_in_order() {
    let server = Nats::options().generation(Generation::New).fsync().start().await.expect("a server");
    let url = format!("{}?namespace=it&sync=always", server.url());
    let bus = open(&url).await.expect("opened");
    let confirms = (0..1200).map(|n| bus.publish(message("orders.placed.v1", &n.to_string()))).collect();
    for (n, outcome) in outcomes(confirms).await.into_iter().enumerate() {
        assert_eq!(outcome.expect("stored").position, Some(Position(n as u128 + 1)), "message {n}");
    }
    let js = jetstream::new(plain(&url).await);
    let stream = js.get_stream("EVT_it_orders").await.expect("a stream");
    let config = jetstream::consumer::pull::Config::default();
    let consumer = stream.create_consumer(config).await.expect("an ephemeral consumer");
    let stored = consumer.messages().await.expect("a pull").next().await.expect("one").expect("no error");
    assert!(stored.headers.as_ref().expect("headers").get("Nats-Batch-Id").is_some(), "no batch");
    let mut spec = group("g", "orders.>");
    spec.start = Start::Earliest;
    let subscription = bus.subscribe(spec).await.expect("subscribed");
    for n in 0..1200 {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload, n.to_string());
        assert_eq!(delivery.message().headers.len(), 0);
        delivery.ack().await.expect("acknowledged");
    }
}

/// A batch that the server refuses because of one message does not fail the other messages.
#[tokio::test]
async fn each_message_of_a_refused_batch_has_its_own_outcome() {
    let server = Nats::options().generation(Generation::New).fsync().start().await.expect("a server");
    let url = format!("{}?namespace=it&sync=always", server.url());
    let bus = open(&url).await.expect("opened");
    bus.publish(message("orders.placed.v1", "first")).await.expect("published");
    let js = jetstream::new(plain(&url).await);
    let mut config = js.get_stream("EVT_it_orders").await.expect("a stream").cached_info().config.clone();
    config.max_message_size = 2000;
    js.update_stream(config).await.expect("updated");
    let confirms = (0..20)
        .map(|n| {
            let text = if n == 7 { "x".repeat(3000) } else { n.to_string() };
            bus.publish(message("orders.placed.v1", &text))
        })
        .collect();
    let outcomes = outcomes(confirms).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match n {
            7 => assert_eq!(outcome.as_ref().expect_err("too large"), &ErrorKind::TooLarge),
            _ => {
                let position = outcome.as_ref().expect("stored").position;
                assert_eq!(position, Some(Position(if n < 7 { n as u128 + 2 } else { n as u128 + 1 })));
            }
        }
    }
    let info = js.get_stream("EVT_it_orders").await.expect("a stream").cached_info().clone();
    assert_eq!(info.state.messages, 20, "nothing is stored twice");
}

/// Messages with a dedup id are published alone, in their place in the order.
#[tokio::test]
async fn what_must_be_stored_once_is_stored_once_among_batches() {
    let server = Nats::options().generation(Generation::New).fsync().start().await.expect("a server");
    let bus = open(&format!("{}?namespace=it&sync=always", server.url())).await.expect("opened");
    let confirms = (0..60)
        .map(|n| {
            let mut message = message("orders.placed.v1", &n.to_string());
            if n % 20 == 10 {
                (message.id, message.dedup) = ("same".into(), true);
            }
            bus.publish(message)
        })
        .collect();
    let outcomes: Vec<_> =
        outcomes(confirms).await.into_iter().map(|outcome| outcome.expect("stored")).collect();
    let duplicates: Vec<_> = (0..60).filter(|n| outcomes[*n].duplicate).collect();
    assert_eq!(duplicates, [30, 50]);
    let places: Vec<_> =
        outcomes.iter().filter(|receipt| !receipt.duplicate).map(|receipt| receipt.position).collect();
    let want: Vec<_> = (1..=58).map(|place| Some(Position(place))).collect();
    assert_eq!(places, want);
}
