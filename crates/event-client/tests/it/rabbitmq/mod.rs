//! RabbitMQ beyond the exam, on the real server: what is refused, and what comes from elsewhere.

mod foreign;
mod outage;
mod refusals;
mod security;

use std::sync::Arc;

use event_client::Error;
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{self, Subscribe, Transport};
use test_servers::{Generation, Rabbit};

async fn server() -> &'static Rabbit {
    Rabbit::shared(Generation::Old).await
}

async fn open(url: &str) -> Result<Arc<dyn Transport>, Error> {
    transport::open(url.parse()?).await
}

/// A bus on a vhost of the test's own.
async fn bus(name: &str) -> (String, Arc<dyn Transport>) {
    let url = server().await.vhost(name).await.expect("a vhost");
    let bus = open(&url).await.expect("the bus opens");
    (url, bus)
}

fn message(subject: &str, body: &str) -> Message {
    Message::new(Subject::new(subject).expect("a subject"), "text/plain", body.to_owned())
}

fn group(name: &str, pattern: &str) -> Subscribe {
    Subscribe::group(Group::new(name).expect("a name"), [Pattern::new(pattern).expect("a pattern")])
}

/// A plain client's channel on the same vhost.
async fn plain(url: &str) -> (lapin::Connection, lapin::Channel) {
    let connection =
        lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}
