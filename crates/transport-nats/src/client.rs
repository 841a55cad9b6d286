//! The client: the link to the server with everything that the features of the transport share. It knows no feature.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::{RequestErrorKind, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use smol_str::{SmolStr, format_smolstr};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{ApiError, Failure, unreadable};
use super::codec;
use super::config::Config;
use super::error::closed;
use super::link::Link;
use super::names::Names;
use super::outbound::Outbound;
use super::pub_ack::Outgoing;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::supervise;

/// Oldest supported server version.
const OLDEST: (u32, u32) = (2, 9);
/// Bytes that a dead letter's own headers need in addition to its message.
const HEADROOM: usize = 32 * 1024;

/// The link to the server, and the names, limits and tasks of one transport.
pub(super) struct Client {
    pub(super) config: Config,
    pub(super) names: Names,
    pub(super) link: Link,
    pub(super) outbound: Arc<Outbound>,
    /// Identifies this connection among all connections of the namespace.
    pub(super) id: SmolStr,
    pub(super) server: Server,
    pub(super) closed: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Called when a task that the whole connection needs has failed.
    broken: OnceLock<Box<dyn Fn() + Send + Sync>>,
    next: AtomicU64,
}

/// The version and the limits of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub(super) version: (u32, u32),
    /// Largest size in bytes of a message with its headers.
    pub(super) max_wire: usize,
    /// Largest message or frame in bytes, as [`Message::size`] counts them.
    pub(super) max_payload: usize,
}

impl Server {
    /// Reads the server's information. Refuses a server that cannot do what this transport promises.
    fn check(info: &async_nats::ServerInfo, config: &Config) -> Result<Self> {
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
        let room = info.max_payload.saturating_sub(HEADROOM);
        if room < 1024 {
            return Err(Error::new(
                ErrorKind::Config,
                "the server's `max_payload` leaves no room for messages; set it to at least 64 KiB",
            )
            .with("max_payload", info.max_payload));
        }
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
        Ok(Self { version, max_wire: info.max_payload - HEADROOM / 2, max_payload })
    }

    /// Returns whether the server has at least this version.
    pub(super) fn at_least(&self, major: u32, minor: u32) -> bool {
        self.version >= (major, minor)
    }

    /// Checks the size on the wire. It includes header names and escapes, which a message's own size does not.
    pub(super) fn fits(&self, message: &Message, headers: &async_nats::HeaderMap) -> Result<()> {
        let bytes = message.payload.len() + codec::wire_len(headers);
        if bytes <= self.max_wire {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TooLarge, "the message with its headers is larger than the server takes")
            .with("subject", &message.subject)
            .with("bytes", bytes)
            .with("limit", self.max_wire))
    }
}

impl Client {
    /// Connects, and checks the server's version and limits.
    pub(super) async fn open(config: Config) -> Result<Arc<Self>> {
        let link = Link::dial(&config).await?;
        let server = Server::check(&link.nats.server_info(), &config)?;
        let outbound = Outbound::new(link.nats.clone(), config.publish_timeout);
        let client = Arc::new(Self {
            names: Names::new(&config.namespace),
            config,
            link,
            outbound,
            id: format_smolstr!("{}-{:08x}", std::process::id(), fastrand::u32(..)),
            server,
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            broken: OnceLock::new(),
            next: AtomicU64::new(1),
        });
        client.check_jetstream().await?;
        Ok(client)
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

    /// Starts the tasks of the outbound queue. `resend` receives each message for whose publish there was no
    /// responder; `broken` is called when a task that the whole connection needs has failed.
    pub(super) async fn start(
        self: &Arc<Self>,
        resend: impl Fn(Outgoing) + Send + Sync + 'static,
        broken: impl Fn() + Send + Sync + 'static,
    ) -> Result<()> {
        let _ = self.broken.set(Box::new(broken));
        let (outbound, closed) = (&self.outbound, &self.closed);
        let replies = outbound.subscribe().await?;
        self.vital("nats confirmations", outbound.clone().read_replies(replies, resend, closed.clone()));
        self.vital("nats sender", outbound.clone().drain(closed.clone()));
        self.vital("nats deadlines", outbound.clone().watch_deadlines(self.link.clone(), closed.clone()));
        Ok(())
    }

    pub(super) fn new_inbox(&self) -> String {
        self.link.nats.new_inbox()
    }

    /// Subscribes to a subject of core NATS.
    pub(super) async fn subscribe(&self, subject: String) -> Result<Subscriber> {
        self.link.subscribe(subject).await
    }

    /// Returns a number that is unique on this connection.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request to JetStream's API. `subject` omits the prefix `$JS.API.`.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        /// The error of a reply, if there is one.
        #[derive(Deserialize)]
        struct Reply {
            error: Option<ApiError>,
        }
        let subject = format!("$JS.API.{subject}");
        let body = serde_json::to_vec(body).expect("plain data").into();
        let bytes = self.ask(subject, body, self.config.request_timeout).await?;
        let reply: Reply = serde_json::from_slice(&bytes).map_err(unreadable)?;
        match reply.error {
            Some(error) => Err(Failure::Api(error)),
            None => serde_json::from_slice(&bytes).map_err(unreadable),
        }
    }

    /// Waits until the server has read everything that was sent so far.
    pub(super) async fn round_trip(&self) -> Result<()> {
        let failed = |error: async_nats::Error| {
            Error::new(ErrorKind::Unavailable, "the connection to the server is lost").because(error)
        };
        let nats = &self.link.nats;
        let inbox = nats.new_inbox();
        let mut echo = nats.subscribe(inbox.clone()).await.map_err(|error| failed(error.into()))?;
        nats.publish(inbox, Bytes::new()).await.map_err(|error| failed(error.into()))?;
        let patience = self.config.request_timeout;
        match tokio::time::timeout(patience, echo.next()).await {
            Ok(Some(_)) => Ok(()),
            _ => Err(self.link.no_answer("an echo", patience)),
        }
    }

    /// Sends a request over core NATS with a deadline.
    pub(super) async fn ask(&self, subject: String, body: Bytes, within: Duration) -> Result<Bytes, Failure> {
        self.ask_with_headers(subject, async_nats::HeaderMap::new(), body, within).await
    }

    pub(super) async fn ask_with_headers(
        &self,
        subject: String,
        headers: async_nats::HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, Failure> {
        if self.closed.is_cancelled() {
            return Err(Failure::Other(closed()));
        }
        let mut denied = self.link.denied.subscribe();
        let mut request = async_nats::Request::new().payload(body).timeout(Some(within));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let mut answer = std::pin::pin!(self.link.nats.send_request(subject.clone(), request));
        loop {
            tokio::select! {
                answer = &mut answer => return match answer {
                    Ok(message) => Ok(message.payload),
                    Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                        Err(Failure::NoResponder)
                    }
                    Err(error) if error.kind() == RequestErrorKind::TimedOut => {
                        Err(Failure::Other(self.link.no_answer(&subject, within)))
                    }
                    Err(error) => Err(Failure::Other(
                        Error::new(ErrorKind::Unavailable, "the request did not reach the server").because(error),
                    )),
                },
                refused = denied.recv() => if let Ok(refused) = refused
                    && (refused.subject == subject || refused.is_inbox())
                {
                    return Err(Failure::Other(refused.error()));
                },
                () = self.closed.cancelled() => return Err(Failure::Other(closed())),
            }
        }
    }

    /// Runs a task that the whole connection needs: when the task fails, the connection is closed.
    pub(super) fn vital(
        self: &Arc<Self>,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let client = Arc::downgrade(self);
        self.tasks.spawn(supervise::run(name, work, move || {
            if let Some(client) = client.upgrade() {
                client.break_off();
            }
        }));
    }

    /// Closes the connection at once. All waiting operations fail with an error that the connection is closed.
    fn break_off(&self) {
        self.outbound.stop_taking();
        self.closed.cancel();
        self.outbound.abandon();
        if let Some(broken) = self.broken.get() {
            broken();
        }
    }

    /// Ends all tasks, flushes and disconnects. Each step takes at most `patience`.
    pub(super) async fn close(&self, patience: Duration) {
        self.closed.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(patience, self.tasks.wait()).await;
        self.outbound.abandon();
        let _ = tokio::time::timeout(patience, self.link.nats.flush()).await;
        let _ = self.link.nats.drain().await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).field("id", &self.id).finish_non_exhaustive()
    }
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
