//! The door: a URL's scheme decides the transport.

use std::sync::Arc;

use super::{MemoryTransport, SqliteTransport, Transport};
use crate::error::{Error, ErrorKind, Result};
use crate::url::BusUrl;

/// Opens the transport that `url` names.
///
/// # Errors
/// [`ErrorKind::Config`] for an unknown scheme or option, [`ErrorKind::Unsupported`] for a transport that this
/// build does not have, and what the transport itself says.
pub async fn open(url: BusUrl) -> Result<Arc<dyn Transport>> {
    let shown = url.to_string();
    match url.scheme() {
        "memory" => MemoryTransport::open(url).map(|memory| Arc::new(memory) as Arc<dyn Transport>),
        "sqlite" => SqliteTransport::open(url).await.map(|sqlite| Arc::new(sqlite) as Arc<dyn Transport>),
        "nats" | "tls" | "redis" | "rediss" | "amqp" | "amqps" => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "this build has no `{}` transport; use `memory:`, `memory:NAME` or `sqlite:PATH`",
                url.scheme()
            ),
        )),
        scheme => Err(Error::new(
            ErrorKind::Config,
            format!("unknown scheme `{scheme}`; use `memory:`, `memory:NAME` or `sqlite:PATH`"),
        )),
    }
    .map_err(|error: Error| error.during("connect").with("url", shown))
}
