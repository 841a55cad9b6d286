//! Tests handlers that run longer than the broker's `consumer_timeout`.

use event_client::ErrorKind;
use event_client::subscription::Health;
use event_client::transport::Severity;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use test_servers::{Generation, Rabbit};

use super::{group, message, open, plain};

/// Starts a broker whose `consumer_timeout` is one second.
async fn impatient(generation: Generation) -> Rabbit {
    let own = Rabbit::options().generation(generation).start().await.expect("a server");
    let set = "application:set_env(rabbit, consumer_timeout, 1000), \
               application:set_env(rabbit, channel_tick_interval, 200)";
    own.eval(set).await.expect("set");
    own
}

/// Returns when the broker has taken a delivery away from a plain client that starts to consume now.
async fn until_a_plain_client_is_given_up(own: &Rabbit) {
    let (_connection, channel) = plain(&own.url()).await;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("plain".into(), durable, quorum).await.expect("declared");
    let publish = BasicPublishOptions::default();
    let properties = lapin::BasicProperties::default();
    channel.basic_publish("".into(), "plain".into(), publish, b"x", properties).await.expect("published");
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume("plain".into(), "plain".into(), options, FieldTable::default());
    let mut consumer = consume.await.expect("consumes");
    let held = consumer.next().await.expect("a delivery").expect("a delivery");
    // The stream ends when the consumer is cancelled or the channel is closed.
    while let Some(Ok(_)) = consumer.next().await {}
    drop(held);
}

/// Where consumers cannot raise the timeout, the message is delivered again and every subscription continues.
#[tokio::test]
async fn a_handler_beyond_the_consumer_timeout_gets_its_message_again() {
    let own = impatient(Generation::Old).await;
    for keyed in [false, true] {
        let bus = open(&format!("{}?namespace=keyed-{keyed}", own.url())).await.expect("the bus opens");
        let mut spec = group("g", "orders.>");
        spec.keyed = keyed;
        let subscription = bus.subscribe(spec).await.expect("subscribed");
        bus.publish(message("orders.placed", "slow")).await.expect("stored");
        let slow = subscription.next().await.expect("a delivery");
        let again = subscription.next().await.expect("the message is delivered again");
        assert_eq!((&*again.message().payload, again.info().attempt), (&b"slow"[..], 2));
        let error = slow.ack().await.expect_err("the channel is closed");
        assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
        again.ack().await.expect("acknowledged");
        bus.publish(message("orders.placed", "after")).await.expect("stored");
        let after = subscription.next().await.expect("a delivery");
        assert_eq!(&*after.message().payload, b"after");
        after.ack().await.expect("acknowledged");
        assert_eq!(*subscription.health().borrow(), Health::Live);
    }
}

/// On newer brokers the consumer sets a longer timeout, so that a delivery stays with its handler.
#[tokio::test]
async fn a_handler_may_take_its_time_where_consumers_can_ask_for_it() {
    let own = impatient(Generation::New).await;
    let bus = open(&own.url()).await.expect("the bus opens");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    bus.publish(message("orders.placed", "slow")).await.expect("stored");
    let slow = subscription.next().await.expect("a delivery");
    until_a_plain_client_is_given_up(&own).await;
    slow.ack().await.expect("the delivery is still leased");
    bus.publish(message("orders.placed", "after")).await.expect("stored");
    let after = subscription.next().await.expect("a delivery");
    assert_eq!((&*after.message().payload, after.info().attempt), (&b"after"[..], 1));
}

#[tokio::test]
async fn the_doctor_names_the_risk() {
    for (generation, verdict, word) in
        [(Generation::Old, Severity::Advice, "30 minutes"), (Generation::New, Severity::Good, "24 days")]
    {
        let own = Rabbit::shared(generation).await;
        let bus = open(&own.vhost("consumer-timeout").await.expect("a vhost")).await.expect("the bus opens");
        let findings = bus.admin().diagnose().await.expect("looked at");
        let found =
            findings.iter().find(|finding| finding.check == "consumer timeout").expect("it is looked at");
        assert_eq!(found.severity, verdict, "{found:?}");
        assert!(found.text.contains(word), "{found:?}");
    }
}
