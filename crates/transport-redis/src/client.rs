//! The ground of one open Redis bus: its connections, its names and the facts about the server. It knows no feature.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::codec::{parts, text};
use super::config::Config;
use super::connection::Connection;
use super::dial::Dialer;
use super::error::closed;
use super::keys::Keys;
use super::pubsub::Subscriber;
use super::scripts;
use super::server_info::{Facts, Kept};
use event_transport::backoff::Backoff;
use event_transport::consumer_name;
use event_transport::error::{Error, ErrorKind, Result};

/// The parts of one bus that all features use.
pub(super) struct Client {
    pub(super) config: Config,
    pub(super) keys: Keys,
    pub(super) connection: Arc<Connection>,
    pub(super) subscriber: Arc<Subscriber>,
    /// Unique in the server: part of the names of its inbox channel, consumers and service members.
    pub(super) id: SmolStr,
    pub(super) facts: Facts,
    pub(super) kept: Kept,
    /// Cancelled when closing begins: from then on new work is refused.
    pub(super) closing: CancellationToken,
}

impl Client {
    pub(super) async fn open(config: Config) -> Result<Arc<Self>> {
        let connection = Connection::open(Dialer::new(&config)?).await?;
        let guard = connection.closed.clone().drop_guard();
        let facts = Facts::ask(&connection, &config).await?;
        refuse_cluster(&connection).await?;
        let subscriber = Subscriber::open(connection.clone()).await?;
        let keys = Keys::new(&config.namespace, config.server.db);
        // When the connection ends for good, all tasks that use it must end too.
        let closing = connection.closed.child_token();
        guard.disarm();
        Ok(Arc::new(Self {
            id: consumer_name(),
            config,
            keys,
            connection,
            subscriber,
            kept: Kept::new(facts.durability),
            facts,
            closing,
        }))
    }

    /// # Errors
    /// When the bus is closed or is about to close.
    pub(super) fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closing.is_cancelled() { Err(closed().during(operation)) } else { Ok(()) }
    }

    /// Returns every topic that was ever published to or subscribed to, sorted.
    pub(super) async fn topics(&self) -> Result<Vec<SmolStr>> {
        let mut ask = redis::cmd("SMEMBERS");
        ask.arg(self.keys.topics());
        let mut topics: Vec<SmolStr> =
            parts(self.connection.ask(ask).await?).iter().map(|value| text(value).into()).collect();
        topics.sort();
        Ok(topics)
    }

    /// Publishes `word` on a channel as a wake-up message; the channel may have no subscriber.
    pub(super) async fn signal(&self, channel: &str, word: &str) -> Result<()> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(word);
        self.connection.ask(command).await.map(drop)
    }

    /// Registers topics, as a publish to them does.
    pub(super) async fn register(&self, topics: &[SmolStr]) -> Result<()> {
        let mut pipeline = Pipeline::new();
        for topic in topics {
            let mut register = scripts::TOPIC.on(&[&self.keys.topics()]);
            register.arg(topic.as_str()).arg(self.keys.system().as_str());
            pipeline.add_command(register);
        }
        self.connection.ask_all(&pipeline).await.map(drop)
    }

    pub(super) async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        let answer: Value = self.connection.ask(redis::cmd("PING")).await?;
        drop(answer);
        Ok(start.elapsed())
    }
}

/// Refuses a node of a Redis Cluster: it stores only a part of the topics and redirects clients to other nodes for the
/// rest.
async fn refuse_cluster(connection: &Connection) -> Result<()> {
    let mut ask = redis::cmd("INFO");
    ask.arg("cluster");
    match connection.ask(ask).await {
        Ok(info) if text(&info).contains("cluster_enabled:1") => Err(Error::new(
            ErrorKind::Unsupported,
            "the server is a node of a Redis Cluster, whose redirections this transport does not follow; use a server with replicas under Sentinel (`sentinel=NAME`)",
        )),
        Err(error) if error.kind() != ErrorKind::Denied => Err(error),
        _ => Ok(()),
    }
}

/// The pauses between the tries of [`Patience`].
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// Repeats an operation that an outage interrupted, for as long as a publish would wait; only for operations that may
/// run twice.
pub(super) struct Patience<'a> {
    client: &'a Client,
    since: Instant,
    backoff: Backoff,
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, since: Instant::now(), backoff: RETRY }
    }

    /// Waits before the next try; `false` when another try is useless: other errors, too much time, or a closing bus.
    pub(super) async fn lasts(&mut self, error: &Error) -> bool {
        if error.kind() != ErrorKind::Unavailable || self.since.elapsed() > self.client.config.publish_timeout
        {
            return false;
        }
        tokio::select! {
            () = self.backoff.pause() => true,
            () = self.client.closing.cancelled() => false,
        }
    }
}
