//! Opens a transport: the scheme of the URL selects it.

use std::sync::Arc;

use super::{MemoryTransport, SqliteTransport, Transport};
use crate::error::{Error, ErrorKind, Result};
use crate::url::{BusUrl, URLS};

/// Opens the transport that `url` names. [`docs`](super::docs) has a page for each transport, with all its options.
///
/// # Errors
/// [`ErrorKind::Config`] for an unknown scheme or option, [`ErrorKind::Unsupported`] for a transport that this
/// build does not include, and the errors of the transport itself.
pub async fn open(url: BusUrl) -> Result<Arc<dyn Transport>> {
    let shown = url.to_string();
    match url.scheme() {
        "memory" => MemoryTransport::open(url).map(|memory| Arc::new(memory) as Arc<dyn Transport>),
        "sqlite" => {
            Box::pin(SqliteTransport::open(url)).await.map(|sqlite| Arc::new(sqlite) as Arc<dyn Transport>)
        }
        #[cfg(feature = "nats")]
        "nats" | "tls" => Box::pin(super::nats::NatsTransport::open(url))
            .await
            .map(|nats| Arc::new(nats) as Arc<dyn Transport>),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => Box::pin(super::redis::RedisTransport::open(url))
            .await
            .map(|redis| Arc::new(redis) as Arc<dyn Transport>),
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => Box::pin(super::rabbitmq::RabbitTransport::open(url))
            .await
            .map(|rabbit| Arc::new(rabbit) as Arc<dyn Transport>),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(left_out("nats")),
        #[cfg(not(feature = "redis"))]
        "redis" | "rediss" => Err(left_out("redis")),
        #[cfg(not(feature = "rabbitmq"))]
        "amqp" | "amqps" => Err(left_out("rabbitmq")),
        scheme => Err(Error::new(ErrorKind::Config, format!("unknown scheme `{scheme}`; use {URLS}"))),
    }
    .map_err(|error: Error| error.during("connect").with("url", shown))
}

#[allow(dead_code, reason = "for builds without some feature")]
fn left_out(feature: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this build does not include the transport; build event-client with its feature `{feature}`"),
    )
}
