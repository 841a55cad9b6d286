//! The link to the server: dials it with a deadline, and tracks its connections and refusals.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{ConnectOptions, Event, ServerError, Subscriber};
use tokio::sync::{broadcast, watch};

use super::config::{Config, Login};
use super::error::{Denied, connect};
use event_transport::error::{Error, ErrorKind, Result};

/// The NATS client, and the events of its connection.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) nats: async_nats::Client,
    /// Increases with every new connection to the server.
    pub(super) connects: watch::Receiver<u64>,
    /// Subjects whose use the server has denied.
    pub(super) denied: broadcast::Sender<Denied>,
    counts: Arc<async_nats::Statistics>,
}

/// Senders for events of the connection. They exist before the connection does.
struct Events {
    connects: watch::Sender<u64>,
    denied: broadcast::Sender<Denied>,
}

impl Link {
    /// Connects to the server that `config` names.
    pub(super) async fn dial(config: &Config) -> Result<Self> {
        let (sender, connects) = watch::channel(0);
        let (denied, _) = broadcast::channel(16);
        let events = Arc::new(Events { connects: sender, denied: denied.clone() });
        let nats = dial(config, events).await?;
        let counts = nats.statistics();
        Ok(Self { nats, connects, denied, counts })
    }

    /// Returns the number of connections made so far. Data that was written to an earlier one may be lost. `connects`
    /// carries the same number, slightly later.
    pub(super) fn incarnation(&self) -> u64 {
        self.counts.connects.load(Ordering::Acquire)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.nats.connection_state() == State::Connected
    }

    pub(super) async fn subscribe(&self, subject: String) -> Result<Subscriber> {
        self.nats.subscribe(subject).await.map_err(|error| not_subscribed().because(error))
    }

    /// Subscribes as one of the members among whom the server distributes the messages.
    pub(super) async fn queue_subscribe(&self, subject: String) -> Result<Subscriber> {
        let subscribed = self.nats.queue_subscribe(subject, "q".to_owned()).await;
        subscribed.map_err(|error| not_subscribed().because(error))
    }

    /// Builds the error for a missing reply: a timeout while connected, otherwise an unavailable server.
    pub(super) fn no_answer(&self, subject: &str, within: Duration) -> Error {
        let error = if self.is_connected() {
            Error::new(ErrorKind::Timeout, "the server did not answer in time; the outcome is unknown")
        } else {
            Error::new(
                ErrorKind::Unavailable,
                "the connection to the server is lost and was not restored in time",
            )
        };
        error.with("nats_subject", subject).with("waited", format!("{within:?}"))
    }
}

fn not_subscribed() -> Error {
    Error::new(ErrorKind::Unavailable, "the subscription did not reach the server")
}

async fn dial(config: &Config, events: Arc<Events>) -> Result<async_nats::Client> {
    let mut options = match &config.login {
        Login::None => ConnectOptions::new(),
        Login::User(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.clone()),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::Nkey(path) => {
            let seed = std::fs::read_to_string(path).map_err(|error| unusable("nkey", path, error))?;
            ConnectOptions::with_nkey(seed.trim().to_owned())
        }
        Login::Creds(path) => ConnectOptions::with_credentials_file(path)
            .await
            .map_err(|error| unusable("creds", path, error))?,
    };
    options = options
        .name("backbone")
        .connection_timeout(Duration::from_secs(5))
        .client_capacity(8192)
        .ping_interval(Duration::from_secs(10))
        .skip_subject_validation(true)
        .reconnect_delay_callback(|tries| {
            let most = 50_u64 << tries.min(6);
            Duration::from_millis(fastrand::u64(most / 2..=most))
        })
        .event_callback(move |event| {
            match event {
                Event::Connected => events.connects.send_modify(|count| *count += 1),
                Event::ServerError(ServerError::Other(text)) => {
                    if let Some(denied) = Denied::read(&text) {
                        let _ = events.denied.send(denied);
                    }
                }
                _ => {}
            }
            std::future::ready(())
        });
    if let Some(tls) = &config.tls {
        options = options.require_tls(true);
        if tls.first {
            options = options.tls_first();
        }
        for (option, path) in [
            ("ca", tls.ca.as_ref()),
            ("cert", tls.cert.as_ref().map(|(cert, _)| cert)),
            ("key", tls.cert.as_ref().map(|(_, key)| key)),
        ] {
            if let Some(path) = path {
                std::fs::File::open(path).map_err(|error| unusable(option, path, error))?;
            }
        }
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = &tls.cert {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    let patience = Duration::from_secs(10);
    match tokio::time::timeout(patience, options.connect(&config.servers[..])).await {
        Ok(connected) => connected.map_err(|error| connect(error, config)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "the server did not answer in time")
            .with("waited", format!("{patience:?}"))),
    }
}

fn unusable(option: &'static str, path: &std::path::Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the file of option `{option}` cannot be used"))
        .with("path", path.display())
        .because(error)
}
