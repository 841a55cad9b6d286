//! The two connections to the broker: each is opened when needed, and opened again after a failure.
//!
//! One publishes, the other consumes: a broker that runs out of memory or disk stops reading from connections that
//! publish, and it must still receive acknowledgements then.

use std::sync::{Arc, Mutex as Cell};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ConnectionProperties, ConnectionStatus, Event};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::error::{amqp, closed};
use super::handshake::{self, Version};
use event_transport::backoff::Backoff;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::sync::lock;

/// How long the broker may take for a command on an open connection.
pub(super) const COMMAND: Duration = Duration::from_secs(10);

/// Pauses between tries of everything that must be opened again.
pub(super) const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(3200));

/// The `x-consumer-timeout` that consumers request: the largest number that the broker accepts.
const HELD: Duration = Duration::from_millis(i32::MAX as u64);

/// One connection, opened when needed and again after a failure.
#[derive(Debug)]
pub(super) struct Link {
    config: Arc<Config>,
    role: &'static str,
    connection: Mutex<Option<Arc<lapin::Connection>>>,
    /// The version of the broker at the last connection.
    version: Cell<Option<Version>>,
    /// The broker's reason for not reading from the connection.
    blocked: Arc<Cell<Option<String>>>,
    /// Cancelled when the bus is closed or cannot continue.
    pub(super) closed: CancellationToken,
}

impl Link {
    pub(super) fn new(config: Arc<Config>, role: &'static str, closed: CancellationToken) -> Self {
        Self {
            config,
            role,
            connection: Mutex::new(None),
            version: Cell::default(),
            blocked: Arc::default(),
            closed,
        }
    }

    /// Returns the connection; tries once to open it if there is none.
    pub(super) async fn connection(&self) -> Result<Arc<lapin::Connection>> {
        let mut kept = self.connection.lock().await;
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        if let Some(connection) = kept.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(connection.clone());
        }
        *kept = None;
        let connection = Arc::new(self.connect().await?);
        *kept = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<lapin::Connection> {
        let mut failure = None;
        let each = self.config.connect_timeout / u32::try_from(self.config.uris.len()).unwrap_or(1);
        for uri in &self.config.uris {
            let name = format!("event-client {} {}", std::process::id(), self.role);
            let properties = ConnectionProperties::default().with_connection_name(name.as_str().into());
            let runtime = lapin::runtime::default_runtime().map_err(amqp)?;
            let connecting = lapin::Connection::connect_uri_with_config(
                uri.clone(),
                properties,
                self.config.tls.clone(),
                runtime,
            );
            let host = format!("{}:{}", uri.authority.host, uri.authority.port);
            let connecting = async {
                // Read each time, and not for the version alone: when an attempt of the client library is dropped, it
                // keeps its thread and buffers for as long as a hanging server holds the socket. This handshake ends
                // with its socket.
                let told = handshake::version(uri, &self.config.tls).await?;
                *lock(&self.version) = Some(told);
                connecting.await.map_err(amqp)
            };
            match timeout(each, connecting).await {
                Ok(Ok(connection)) => {
                    *lock(&self.blocked) = None;
                    let (events, status) = (connection.events_listener(), connection.status().clone());
                    tokio::spawn(listen(events, status, self.blocked.clone(), host));
                    return Ok(connection);
                }
                Ok(Err(error)) => {
                    failure = Some(error.with("broker", host).with("vhost", &self.config.vhost));
                }
                Err(_) => {
                    failure = Some(
                        Error::new(ErrorKind::Unavailable, "the broker did not answer in time")
                            .with("broker", host),
                    );
                }
            }
        }
        Err(failure.expect("there is at least one host"))
    }

    /// The version of the broker, once there was a connection.
    pub(super) fn version(&self) -> Option<Version> {
        *lock(&self.version)
    }

    /// Opens a new channel.
    pub(super) async fn channel(&self) -> Result<Channel> {
        let connection = self.connection().await?;
        command("open a channel", connection.create_channel()).await
    }

    /// Opens a new channel with publisher confirms.
    pub(super) async fn confirming(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        command("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Whether the broker has an ability; while its version is unknown, only abilities of the oldest version count.
    pub(super) fn can(&self, ability: impl FnOnce(Version) -> bool) -> bool {
        self.version().is_some_and(ability)
    }

    /// The arguments for a consumer of a quorum queue that holds each delivery for as long as its handler works: the
    /// broker must not close its channel after `consumer_timeout`. Older brokers do not support this argument.
    pub(super) fn patience(&self) -> FieldTable {
        let mut table = FieldTable::default();
        if self.can(Version::lets_consumers_hold) {
            table.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(bounds::signed_millis(HELD)));
        }
        table
    }

    /// The error for operations that wait for a broker that has stopped reading from this connection; `None` when it
    /// reads.
    pub(super) fn blocked(&self) -> Option<Error> {
        let reason = lock(&self.blocked).clone()?;
        let text = "the broker has stopped taking messages: its memory or disk alarm is on";
        Some(Error::new(ErrorKind::Unavailable, text).with("reason", reason))
    }

    /// Drops a connection on which an answer did not come in time; the next operation opens another one. When a network
    /// has lost bytes, a connection can stay open and yet be unusable, because heartbeats of the broker still arrive.
    pub(super) async fn abandon(&self) {
        if self.blocked().is_some() {
            return; // the broker delays answers on purpose
        }
        if let Some(connection) = self.connection.lock().await.take() {
            tracing::warn!(role = self.role, "the broker does not answer on a connection; opening a new one");
            tokio::spawn(async move {
                let _ = timeout(Duration::from_secs(2), connection.close(200, "no answer".into())).await;
            });
        }
    }

    /// Closes the connection. Operations that still wait on it fail.
    pub(super) async fn close(&self) {
        let kept = self.connection.lock().await.take();
        if let Some(connection) = kept {
            let _ = timeout(Duration::from_secs(2), connection.close(200, "bye".into())).await;
        }
    }
}

/// Records when the broker stops reading and when it starts again; logs each once.
async fn listen(
    events: impl Stream<Item = Event> + Send + 'static,
    status: ConnectionStatus,
    blocked: Arc<Cell<Option<String>>>,
    broker: String,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%broker, %reason, "the broker has stopped taking messages; publishes wait");
                *lock(&blocked) = Some(reason);
            }
            Event::ConnectionUnblocked => {
                tracing::info!(%broker, "the broker takes messages again");
                *lock(&blocked) = None;
            }
            // A channel's error arrives here as well; the connection stays open then.
            Event::Error(_) if !status.connected() => return,
            _ => {}
        }
    }
}

/// Waits for the broker's answer, for at most [`COMMAND`].
pub(super) async fn command<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(COMMAND, answer).await {
        Ok(result) => result.map_err(amqp),
        Err(_) => Err(super::error::timeout(what)),
    }
}
