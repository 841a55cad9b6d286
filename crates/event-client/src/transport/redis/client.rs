//! The state of one open Redis bus: its connections, its background tasks and the facts about the server.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::codec::{parts, text};
use super::config::Config;
use super::connection::{Connection, jitter};
use super::dial::Dialer;
use super::keys::Keys;
use super::member::Member;
use super::publish::Outbox;
use super::pubsub::Subscriber;
use super::reply::ReplySender;
use super::requests::Calls;
use super::serve::Service;
use super::server_info::{Facts, Kept};
use super::settle::Settler;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::consumer_name;

/// The state that all parts of one bus share.
pub(super) struct Client {
    pub(super) config: Config,
    pub(super) keys: Keys,
    pub(super) connection: Arc<Connection>,
    pub(super) subscriber: Arc<Subscriber>,
    /// Unique in the server: part of the names of its inbox channel, consumers and service members.
    pub(super) id: SmolStr,
    pub(super) facts: Facts,
    pub(super) kept: Kept,
    pub(super) outbox: Mutex<Option<Outbox>>,
    pub(super) settler: Settler,
    pub(super) calls: Calls,
    pub(super) reply_sender: ReplySender,
    pub(super) members: Mutex<Vec<Weak<Member>>>,
    pub(super) services: Mutex<Vec<Weak<Service>>>,
    /// Cancelled when closing begins: from then on new work is refused.
    pub(super) closing: CancellationToken,
}

/// The opened client and its writer task.
pub(super) struct Opened {
    pub(super) client: Arc<Client>,
    pub(super) writer: tokio::task::JoinHandle<()>,
}

impl Client {
    pub(super) async fn open(config: Config) -> Result<Opened> {
        let connection = Connection::open(Dialer::new(&config)?).await?;
        let guard = connection.closed.clone().drop_guard();
        let facts = Facts::ask(&connection, &config).await?;
        refuse_cluster(&connection).await?;
        let subscriber = Subscriber::open(connection.clone()).await?;
        let keys = Keys::new(&config.namespace, config.db);
        let (outbox, writer) = Outbox::open(connection.clone(), keys.clone(), &config);
        // When the connection ends for good, all tasks that use it must end too.
        let closing = connection.closed.child_token();
        let client = Arc::new(Self {
            settler: Settler::open(connection.clone()),
            reply_sender: ReplySender::open(connection.clone()),
            id: consumer_name(),
            config,
            keys,
            connection,
            subscriber,
            kept: Kept::new(facts.durability),
            facts,
            outbox: Mutex::new(Some(outbox)),
            calls: Calls::default(),
            members: Mutex::default(),
            services: Mutex::default(),
            closing,
        });
        super::delayed::start(&client).await?;
        super::requests::start(&client).await?;
        super::housekeeping::start(&client);
        guard.disarm();
        Ok(Opened { client, writer })
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
            let mut register = super::scripts::TOPIC.on(&[&self.keys.topics()]);
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

/// Repeats an operation that an outage interrupted, for as long as a publish would wait; only for operations that may
/// run twice.
pub(super) struct Patience<'a> {
    client: &'a Client,
    since: Instant,
    pause: Duration,
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, since: Instant::now(), pause: Duration::from_millis(20) }
    }

    /// Waits before the next try; `false` when another try is useless: other errors, too much time, or a closing bus.
    pub(super) async fn lasts(&mut self, error: &Error) -> bool {
        if error.kind() != ErrorKind::Unavailable || self.since.elapsed() > self.client.config.publish_timeout
        {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(jitter(self.pause)) => {}
            () = self.client.closing.cancelled() => return false,
        }
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
        true
    }
}
