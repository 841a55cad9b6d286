//! Tests RabbitMQ: vhosts, users, permissions and TLS.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Result};
use std::fs::{read, read_to_string};
use test_servers::{Certificates, Generation, Rabbit, Tls};

async fn channel(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// Publishes one persistent message into a durable queue and waits for the confirm.
pub(crate) async fn publish(url: &str) -> Result<()> {
    let (_connection, channel) = channel(url).await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("kept".into(), durable, FieldTable::default()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), "kept".into(), options, b"one", persistent).await?.await?;
    Ok(())
}

/// Returns the number of messages in that queue.
pub(crate) async fn waiting(url: &str) -> u32 {
    let (_connection, channel) = channel(url).await.unwrap();
    let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    channel.queue_declare("kept".into(), passive, FieldTable::default()).await.unwrap().message_count()
}

async fn vhosts_and_users(generation: Generation) {
    let server = Rabbit::shared(generation).await;
    let (first, second) = (server.vhost("first").await.unwrap(), server.vhost("second").await.unwrap());
    assert_eq!(server.vhost("first").await.unwrap(), first);
    publish(&first).await.unwrap();
    publish(&second).await.unwrap();
    assert_eq!(waiting(&first).await, 1);

    channel(&server.url_of("guest", "guest", "absent")).await.unwrap_err();
    channel(&server.url_of("guest", "wrong", "first")).await.unwrap_err();
    server.user("reader", "right").await.unwrap();
    channel(&server.url_of("reader", "right", "first")).await.unwrap_err();
    server.permit("reader", "first", ["^$", "^$", ".*"]).await.unwrap();
    let reader = server.url_of("reader", "right", "first");
    assert_eq!(waiting(&reader).await, 1);
    let error = publish(&reader).await.unwrap_err();
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");

    server.delete_vhost("first").await.unwrap();
    channel(&first).await.unwrap_err();
    let version = server.eval("rabbit_misc:version()").await.unwrap();
    assert_eq!(version.starts_with("\"3."), generation == Generation::Old, "{version}");
    let error = server.eval("no_such_module:call()").await.unwrap_err();
    assert!(error.to_string().contains("undef"), "{error}");
}

#[tokio::test]
async fn vhosts_and_users_old() {
    vhosts_and_users(Generation::Old).await;
}

#[tokio::test]
async fn vhosts_and_users_new() {
    vhosts_and_users(Generation::New).await;
}

async fn reaches(server: &Rabbit, ca: &std::path::Path, client: Option<&Certificates>) -> bool {
    let identity = client.map(|files| OwnedIdentity::PKCS8 {
        pem: read(&files.client).unwrap(),
        key: read(&files.client_key).unwrap(),
    });
    let config = OwnedTLSConfig { identity, cert_chain: Some(read_to_string(ca).unwrap()) };
    let runtime = lapin::runtime::default_runtime().unwrap();
    let properties = ConnectionProperties::default();
    Connection::connect_with_config(&server.url(), properties, config, runtime).await.is_ok()
}

async fn tls(generation: Generation) {
    let server = Rabbit::options().generation(generation).tls(Tls::Mutual).start().await.unwrap();
    let files = server.certificates().unwrap();
    assert!(reaches(&server, &files.ca, Some(files)).await);
    assert!(!reaches(&server, &files.ca, None).await);
    assert!(!reaches(&server, &files.stranger, Some(files)).await);
}

#[tokio::test]
async fn tls_old() {
    tls(Generation::Old).await;
}

#[tokio::test]
async fn tls_new() {
    tls(Generation::New).await;
}
