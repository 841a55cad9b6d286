//! The connection to the server: opens it with a deadline, checks version and JetStream, tracks its events, closes
//! it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerError};
use serde_json::{Value, json};
use smol_str::{SmolStr, format_smolstr};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Failure;
use super::config::{Config, Login};
use super::error::{Denied, connect};
use super::names::Names;
use super::outbound::Outbound;
use super::presence::Participant;
use crate::error::{Error, ErrorKind, Result};
use crate::supervise;
use crate::transport::Capabilities;

/// Oldest supported server version.
const OLDEST: (u32, u32) = (2, 9);
/// Bytes that a dead letter's own headers need in addition to its message.
const HEADROOM: usize = 32 * 1024;

/// The state that all parts of one transport handle share.
pub(super) struct Connection {
    pub(super) config: Config,
    pub(super) names: Names,
    /// Topics whose stream is known to exist.
    pub(super) topics_seen: super::publish::Topics,
    pub(super) client: Client,
    pub(super) outbound: Arc<Outbound>,
    pub(super) batches: super::batch::Batches,
    pub(super) unconfirmed: super::pub_ack::InflightBudget,
    /// Identifies this connection among all connections of the namespace.
    pub(super) id: SmolStr,
    pub(super) version: (u32, u32),
    /// Largest size in bytes of a message with its headers.
    pub(super) max_wire: usize,
    /// Largest message or frame in bytes, as [`Message::size`](crate::message::Message::size) counts them.
    pub(super) max_payload: usize,
    pub(super) closed: CancellationToken,
    /// Subjects whose use the server has denied.
    pub(super) denied: broadcast::Sender<Denied>,
    /// Increases with every new connection to the server.
    pub(super) connects: watch::Receiver<u64>,
    counts: Arc<async_nats::Statistics>,
    pub(super) tasks: TaskTracker,
    pub(super) members: Mutex<Vec<Weak<dyn Participant>>>,
    pub(super) calls: super::requests::Calls,
    pub(super) served: super::reply::Served,
    pub(super) services: super::micro::Services,
    /// Set once this connection answers status requests about its members.
    pub(super) present: tokio::sync::OnceCell<()>,
    /// Set once the stream of dead letters is known to exist.
    pub(super) dead_ready: std::sync::OnceLock<()>,
    /// Set once the stream of delayed messages is known to exist.
    pub(super) work_ready: std::sync::atomic::AtomicBool,
    /// Set once this connection receives notifications of new topics and moves delayed messages.
    pub(super) mover: tokio::sync::OnceCell<()>,
    next: AtomicU64,
}

/// Senders for events of the connection. They exist before the connection does.
struct Events {
    connects: watch::Sender<u64>,
    denied: broadcast::Sender<Denied>,
}

impl Connection {
    pub(super) async fn open(config: Config) -> Result<(Arc<Self>, Capabilities)> {
        let (connects, connects_seen) = watch::channel(0);
        let (denied, _) = broadcast::channel(16);
        let events = Arc::new(Events { connects, denied: denied.clone() });
        let client = dial(&config, events).await?;
        let info = client.server_info();
        let version = version(&info.version);
        if version < OLDEST {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("NATS server {} is too old; 2.9 or newer is needed", info.version),
            ));
        }
        if !info.headers {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the server has headers switched off; enable them",
            ));
        }
        let names = Names::new(&config.namespace);
        let id = format_smolstr!("{}-{:08x}", std::process::id(), fastrand::u32(..));
        let room = info.max_payload.saturating_sub(HEADROOM);
        if room < 1024 {
            return Err(Error::new(
                ErrorKind::Config,
                "the server's `max_payload` leaves no room for messages; set it to at least 64 KiB",
            )
            .with("max_payload", info.max_payload));
        }
        let max_wire = info.max_payload - HEADROOM / 2;
        let max_payload = config.max_payload.unwrap_or(room);
        if max_payload > room {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "option `max_payload` may be at most {room}, because headers need a part of the {} bytes that the server accepts",
                    info.max_payload
                ),
            ));
        }
        let mut capabilities = Capabilities::new("nats");
        capabilities.persistent = config.storage == super::config::Storage::File;
        capabilities.shared = true;
        capabilities.max_durability = super::durability::promised(&config);
        capabilities.durability = capabilities.max_durability;
        capabilities.max_payload = max_payload;
        capabilities.dedup_window = config.dedup_window;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.replay = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = 1;
        let outbound = Outbound::new(client.clone(), config.publish_timeout);
        let counts = client.statistics();
        let connection = Arc::new(Self {
            config,
            names,
            topics_seen: super::publish::Topics::default(),
            client,
            outbound,
            batches: super::batch::Batches::default(),
            unconfirmed: super::pub_ack::InflightBudget::default(),
            id,
            version,
            max_wire,
            max_payload,
            closed: CancellationToken::new(),
            denied,
            connects: connects_seen,
            counts,
            tasks: TaskTracker::new(),
            members: Mutex::default(),
            calls: super::requests::Calls::default(),
            served: super::reply::Served::default(),
            services: super::micro::Services::default(),
            present: tokio::sync::OnceCell::new(),
            dead_ready: std::sync::OnceLock::new(),
            work_ready: std::sync::atomic::AtomicBool::new(false),
            mover: tokio::sync::OnceCell::new(),
            next: AtomicU64::new(1),
        });
        connection.check_jetstream().await?;
        Outbound::start(&connection).await?;
        Ok((connection, capabilities))
    }

    async fn check_jetstream(&self) -> Result<()> {
        let answer: Result<Value, Failure> = self.api("INFO", &json!({})).await;
        match answer {
            Ok(_) => Ok(()),
            Err(Failure::NoResponder) => Err(Error::new(
                ErrorKind::Unsupported,
                "the server runs without JetStream; start it with `-js`, or set `jetstream` in its configuration",
            )),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Returns whether topics should allow atomic batches.
    pub(super) fn batches(&self) -> bool {
        self.config.sync_always && self.version >= super::batch::SINCE
    }

    /// Returns whether the server has at least this version.
    pub(super) fn at_least(&self, major: u32, minor: u32) -> bool {
        self.version >= (major, minor)
    }

    /// Returns the number of connections made so far. Data that was written to an earlier one may be lost. `connects`
    /// carries the same number, slightly later.
    pub(super) fn incarnation(&self) -> u64 {
        self.counts.connects.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the server has read everything that was sent so far.
    pub(super) async fn round_trip(&self) -> Result<()> {
        let failed = |error: async_nats::Error| {
            Error::new(ErrorKind::Unavailable, "the connection to the server is lost").because(error)
        };
        let inbox = self.client.new_inbox();
        let mut echo = self.client.subscribe(inbox.clone()).await.map_err(|error| failed(error.into()))?;
        self.client.publish(inbox, bytes::Bytes::new()).await.map_err(|error| failed(error.into()))?;
        match tokio::time::timeout(self.config.request_timeout, futures_util::StreamExt::next(&mut echo))
            .await
        {
            Ok(Some(_)) => Ok(()),
            _ => Err(self.no_answer("an echo", self.config.request_timeout)),
        }
    }

    /// Returns a number that is unique on this connection.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers a member.
    pub(super) fn add_member(&self, member: &Arc<dyn Participant>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.push(Arc::downgrade(member));
    }

    /// Returns the members that still exist.
    pub(super) fn live_members(&self) -> Vec<Arc<dyn Participant>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// Runs a task that the whole connection needs: when the task fails, the connection is closed.
    pub(super) fn vital(
        self: &Arc<Self>,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let connection = Arc::downgrade(self);
        self.tasks.spawn(supervise::run(name, work, move || {
            if let Some(connection) = connection.upgrade() {
                connection.break_off();
            }
        }));
    }

    /// Closes the connection at once. All waiting operations fail with an error that the connection is closed.
    fn break_off(&self) {
        self.outbound.stop_taking();
        self.closed.cancel();
        self.let_go_of_calls();
        self.outbound.abandon();
        self.batches.abandon();
        self.topics_seen.abandon();
    }

    /// Settles, flushes and closes. One call is enough; a second one waits for the first.
    pub(super) async fn close(&self) {
        self.outbound.stop_taking();
        self.let_go_of_calls();
        let members = self.live_members();
        futures_util::future::join_all(members.iter().map(|member| member.close())).await;
        self.withdraw_presence().await;
        let patience = self.config.publish_timeout.min(Duration::from_secs(5));
        let stored = async {
            self.batches.idle().await;
            self.outbound.idle().await;
        };
        let _ = tokio::time::timeout(patience, stored).await;
        self.closed.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(patience, self.tasks.wait()).await;
        self.outbound.abandon();
        let _ = tokio::time::timeout(patience, self.client.flush()).await;
        let _ = self.client.drain().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("config", &self.config)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

async fn dial(config: &Config, events: Arc<Events>) -> Result<Client> {
    let mut options = match &config.login {
        Login::None => ConnectOptions::new(),
        Login::User(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.clone()),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::Nkey(path) => {
            let seed = std::fs::read_to_string(path).map_err(|error| poison("nkey", path, error))?;
            ConnectOptions::with_nkey(seed.trim().to_owned())
        }
        Login::Creds(path) => {
            ConnectOptions::with_credentials_file(path).await.map_err(|error| poison("creds", path, error))?
        }
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
    if config.tls {
        options = options.require_tls(true);
        if config.tls_first {
            options = options.tls_first();
        }
    }
    for (option, path) in [
        ("ca", config.ca.as_ref()),
        ("cert", config.cert.as_ref().map(|(cert, _)| cert)),
        ("key", config.cert.as_ref().map(|(_, key)| key)),
    ] {
        if let Some(path) = path {
            std::fs::File::open(path).map_err(|error| poison(option, path, error))?;
        }
    }
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &config.cert {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    let patience = Duration::from_secs(10);
    match tokio::time::timeout(patience, options.connect(&config.servers[..])).await {
        Ok(connected) => connected.map_err(|error| connect(error, config)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "the server did not answer in time")
            .with("waited", format!("{patience:?}"))),
    }
}

fn poison(option: &'static str, path: &std::path::Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the file of option `{option}` cannot be used"))
        .with("path", path.display())
        .because(error)
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
