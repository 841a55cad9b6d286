//! Tests that invalid requests are refused with a clear error and affect nothing else.

use event_client::ErrorKind;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::{bus, group, message, open, plain, server};

#[tokio::test]
async fn a_wrong_password_is_named_and_not_shown() {
    let url = server().await.url_of("guest", "s3cret", "/");
    let error = open(&url).await.expect_err("a wrong password");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("password") && !error.to_string().contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_missing_vhost_is_named() {
    let url = server().await.url_of("guest", "guest", "no-such-vhost");
    let error = open(&url).await.expect_err("no vhost");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(
        error.to_string().contains("no-such-vhost") && error.to_string().contains("add_vhost"),
        "{error}"
    );
}

#[tokio::test]
async fn nobody_at_the_address_is_told_at_once() {
    let error = open("amqp://127.0.0.1:1?connect_timeout=2s").await.expect_err("no broker listens");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_missing_permission_refuses_the_publish_alone() {
    let server = server().await;
    server.vhost("rights").await.expect("a vhost");
    server.user("reader", "reader").await.expect("a user");
    // May configure and read everything, but may not write to an exchange of events.
    server
        .permit("reader", "rights", [".*", "^backbone\\.(sys|lock|registry|group).*", ".*"])
        .await
        .expect("rights");
    let url = server.url_of("reader", "reader", "rights");
    let bus = open(&url).await.expect("the bus opens");
    let error = bus.publish(message("orders.placed", "x")).await.expect_err("not permitted");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("permission"), "{error}");
    bus.admin().ping().await.expect("the rest works");
}

#[tokio::test]
async fn a_queue_with_other_settings_is_refused_with_the_difference() {
    let (url, bus) = bus("other-settings").await;
    let (_connection, channel) = plain(&url).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = "backbone.group.g".into();
    channel.queue_declare(queue, durable, FieldTable::default()).await.expect("a classic queue in the way");
    let error = bus.subscribe(group("g", "orders.>")).await.expect_err("it differs");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let text = error.to_string();
    assert!(text.contains("backbone.group.g") && text.contains("inequivalent arg"), "{text}");
    bus.subscribe(group("other", "orders.>")).await.expect("another group is not harmed");
}

#[tokio::test]
async fn a_payload_above_the_brokers_own_limit_is_refused_alone() {
    // The broker's maximum message size is set below the one that the client assumes.
    let own =
        test_servers::Rabbit::options().line("max_message_size = 100000").start().await.expect("a server");
    let bus = open(&own.url()).await.expect("the bus opens");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let before = bus.publish(message("orders.placed", "before"));
    let error = bus.publish(message("orders.placed", &"x".repeat(200_000))).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    before.await.expect("the one before is stored");
    bus.publish(message("orders.placed", "after")).await.expect("the one after is stored");
    let mut seen = Vec::new();
    while !seen.contains(&"after".to_owned()) {
        let delivery = subscription.next().await.expect("a delivery");
        seen.push(String::from_utf8_lossy(&delivery.message().payload).into_owned());
        delivery.ack().await.expect("acknowledged");
    }
    assert_eq!(seen.first().map(String::as_str), Some("before"));
}
