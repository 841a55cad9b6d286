//! Tests RabbitMQ beyond the conformance cases, on the real server: refused input, and messages from other
//! clients.

mod consumer_timeout;
mod foreign;
mod outage;
mod refusals;
mod removed;
mod security;

use std::sync::Arc;

use event_client::transport::Transport;
use test_servers::{Generation, Rabbit};

use crate::broker::{group, message, open};

async fn server() -> &'static Rabbit {
    Rabbit::shared(Generation::Old).await
}

/// Opens a bus on a vhost that only this test uses.
async fn bus(name: &str) -> (String, Arc<dyn Transport>) {
    let url = server().await.vhost(name).await.expect("a vhost");
    let bus = open(&url).await.expect("the bus opens");
    (url, bus)
}

/// Opens a plain client's channel on the same vhost.
async fn plain(url: &str) -> (lapin::Connection, lapin::Channel) {
    let connection =
        lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}
