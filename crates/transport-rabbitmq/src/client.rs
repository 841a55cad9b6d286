//! The base of a bus: its settings, its names, both connections to the broker, and the channel for commands.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use lapin::types::{FieldTable, ShortString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::connection::{Link, RETRY};
use super::declare::Declarer;
use super::error::{closed, is_passing};
use super::names::Names;
use event_transport::Capabilities;
use event_transport::error::{ErrorKind, Result};
use event_transport::message::Durability;

/// The part of a bus that every other part uses.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) config: Arc<Config>,
    pub(super) capabilities: Capabilities,
    pub(super) names: Names,
    pub(super) consume: Arc<Link>,
    pub(super) publish: Arc<Link>,
    pub(super) declarer: Declarer,
    /// Cancelled when closing begins: no new work is accepted.
    pub(super) closing: CancellationToken,
    /// Cancelled when the connections end.
    pub(super) down: CancellationToken,
}

fn capabilities(config: &Config) -> Capabilities {
    let mut capabilities = Capabilities::new("rabbitmq");
    capabilities.persistent = true;
    capabilities.shared = true;
    capabilities.max_durability = Durability::Fsync;
    capabilities.durability = Durability::Fsync;
    capabilities.max_payload = config.max_payload;
    capabilities.delayed = true;
    capabilities.expiry = true;
    capabilities.cross_topic = true;
    capabilities.keyed_members = 1;
    capabilities
}

impl Client {
    /// Opens the connection that consumes now, so that an unreachable broker is an error at once.
    pub(super) async fn connect(config: Config) -> Result<Arc<Self>> {
        let config = Arc::new(config);
        let names = Names::new(&config.namespace);
        // When the connections end for good, all tasks that use them must end too.
        let down = CancellationToken::new();
        let consume = Arc::new(Link::new(config.clone(), "consumes", down.clone()));
        let publish = Arc::new(Link::new(config.clone(), "publishes", down.clone()));
        consume.connection().await?;
        Ok(Arc::new(Self {
            capabilities: capabilities(&config),
            declarer: Declarer::new(consume.clone(), names.clone()),
            closing: down.child_token(),
            config,
            names,
            consume,
            publish,
            down,
        }))
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Runs `step` until it succeeds or fails for good; waits for an unreachable broker as long as a publish does.
    pub(super) async fn patiently<'a, T>(&self, step: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let end = Instant::now() + self.config.publish_timeout;
        let mut backoff = RETRY;
        loop {
            match step().await {
                Err(error) if is_passing(&error) && Instant::now() < end && !self.closing.is_cancelled() => {
                    tracing::debug!(%error, "the operation failed; trying again in a moment");
                    backoff.pause().await;
                }
                result => return result,
            }
        }
    }

    /// Declares a queue that may exist already: if it has other settings, the error reports the difference.
    pub(super) async fn declare_known(&self, queue: ShortString, table: FieldTable) -> Result<()> {
        let shown = queue.clone();
        self.declarer.declare(queue, table).await.map_err(|error| match error.kind() {
            ErrorKind::Config => self.config.provision.differs(format!("queue {shown}"), error),
            _ => error,
        })
    }

    /// Closes both connections. Operations that still wait on them fail.
    pub(super) async fn close(&self) {
        self.down.cancel();
        tokio::join!(self.consume.close(), self.publish.close());
    }
}
