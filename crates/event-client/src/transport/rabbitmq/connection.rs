//! Two connections to the broker, made when needed and made again when lost.
//!
//! One publishes, the other consumes: a broker that runs out of memory or disk stops reading from connections that
//! publish, and acknowledgements must still get through then.

use std::sync::{Arc, Mutex as Cell};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ConnectionProperties, ConnectionStatus, Event};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::error::{amqp, closed};
use super::handshake::{self, Version};
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};

/// How long the broker may take for a command on an open connection.
pub(super) const COMMAND: Duration = Duration::from_secs(10);

/// How long our consumers ask the broker to leave a delivery with them: its largest number.
const HELD: Duration = Duration::from_millis(i32::MAX as u64);

/// One supervised connection.
#[derive(Debug)]
pub(super) struct Link {
    config: Arc<Config>,
    role: &'static str,
    connection: Mutex<Option<Arc<lapin::Connection>>>,
    /// Of the broker of the last connection.
    version: Cell<Option<Version>>,
    /// Why the broker has stopped reading from the connection, in its own words.
    blocked: Arc<Cell<Option<String>>>,
    /// Cancelled when the bus is closed, or cannot go on.
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

    /// The connection; tries once to make it where there is none.
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
                // Asked each time, not for the version alone: an attempt of the client library that is given up keeps its
                // thread and buffers for as long as a server that hangs holds the socket. Ours ends with its socket.
                let told = handshake::version(uri, &self.config.tls).await?;
                *self.version.lock().expect("not poisoned") = Some(told);
                connecting.await.map_err(amqp)
            };
            match timeout(each, connecting).await {
                Ok(Ok(connection)) => {
                    *self.blocked.lock().expect("not poisoned") = None;
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

    /// Which broker it is, once there was a connection.
    pub(super) fn version(&self) -> Option<Version> {
        *self.version.lock().expect("not poisoned")
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel> {
        let connection = self.connection().await?;
        command("open a channel", connection.create_channel()).await
    }

    /// A new channel whose publishes the broker confirms.
    pub(super) async fn confirming(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        command("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// What the broker is able to do; the oldest one is taken for granted before it is known.
    pub(super) fn can(&self, ability: impl FnOnce(Version) -> bool) -> bool {
        self.version().is_some_and(ability)
    }

    /// The arguments of a consumer of a quorum queue that holds each delivery for as long as its handler works: the broker must not take the
    /// channel away from it after `consumer_timeout`. Older brokers cannot be told.
    pub(super) fn patience(&self) -> FieldTable {
        let mut table = FieldTable::default();
        if self.can(Version::lets_consumers_hold) {
            table.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(bounds::signed_millis(HELD)));
        }
        table
    }

    /// The error of what waits for a broker that has stopped reading from this connection; `None` when it reads.
    pub(super) fn blocked(&self) -> Option<Error> {
        let reason = self.blocked.lock().expect("not poisoned").clone()?;
        let text = "the broker has stopped taking messages: its memory or disk alarm is on";
        Some(Error::new(ErrorKind::Unavailable, text).with("reason", reason))
    }

    /// Gives up a connection on which an answer did not come in time: the next one who needs it makes another. Bytes that a
    /// network lost can leave it alive and deaf, for heartbeats of the broker still arrive.
    pub(super) async fn abandon(&self) {
        if self.blocked().is_some() {
            return; // It is slow on purpose.
        }
        if let Some(connection) = self.connection.lock().await.take() {
            tracing::warn!(role = self.role, "the broker does not answer on a connection; another is made");
            tokio::spawn(async move {
                let _ = timeout(Duration::from_secs(2), connection.close(200, "no answer".into())).await;
            });
        }
    }

    /// Says goodbye. Whatever still waits on it fails.
    pub(super) async fn close(&self) {
        let kept = self.connection.lock().await.take();
        if let Some(connection) = kept {
            let _ = timeout(Duration::from_secs(2), connection.close(200, "bye".into())).await;
        }
    }
}

/// Notes when the broker stops and begins to read, which is logged once each.
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
                *blocked.lock().expect("not poisoned") = Some(reason);
            }
            Event::ConnectionUnblocked => {
                tracing::info!(%broker, "the broker takes messages again");
                *blocked.lock().expect("not poisoned") = None;
            }
            // A channel's error comes here as well, and the connection outlives it.
            Event::Error(_) if !status.connected() => return,
            _ => {}
        }
    }
}

/// Awaits the broker's answer for no longer than [`COMMAND`].
pub(super) async fn command<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(COMMAND, answer).await {
        Ok(result) => result.map_err(amqp),
        Err(_) => Err(super::error::timeout(what)),
    }
}

/// Pauses between tries: growing, with jitter, bounded.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    pub(super) async fn pause(&mut self) {
        let most = 50_u64 << self.0.min(6);
        self.0 += 1;
        sleep(Duration::from_millis(most / 2 + fastrand::u64(..=most / 2))).await;
    }

    /// How often it failed since it last worked.
    pub(super) fn tries(&self) -> u32 {
        self.0
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}
