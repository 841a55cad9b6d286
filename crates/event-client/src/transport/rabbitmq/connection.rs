//! Two connections to the broker, made when needed and made again when lost.
//!
//! One publishes, the other consumes: a broker that runs out of memory or disk stops reading from connections that
//! publish, and acknowledgements must still get through then.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, ConnectionProperties};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::error::{amqp, closed};
use crate::error::{Error, ErrorKind, Result};

/// How long the broker may take for a command on an open connection.
pub(super) const COMMAND: Duration = Duration::from_secs(10);

/// One supervised connection.
#[derive(Debug)]
pub(super) struct Link {
    config: Arc<Config>,
    role: &'static str,
    connection: Mutex<Option<Arc<lapin::Connection>>>,
    closed: CancellationToken,
}

impl Link {
    pub(super) fn new(config: Arc<Config>, role: &'static str, closed: CancellationToken) -> Self {
        Self { config, role, connection: Mutex::new(None), closed }
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
            match timeout(each, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => {
                    failure = Some(amqp(error).with("broker", host).with("vhost", &self.config.vhost));
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

    /// Whether the broker has stopped reading from this connection.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.try_lock().is_ok_and(|kept| kept.as_ref().is_some_and(|c| c.status().blocked()))
    }

    /// Says goodbye. Whatever still waits on it fails.
    pub(super) async fn close(&self) {
        let kept = self.connection.lock().await.take();
        if let Some(connection) = kept {
            let _ = timeout(Duration::from_secs(2), connection.close(200, "bye".into())).await;
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
