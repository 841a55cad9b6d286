//! The transport for `redis://HOST`: stores each topic as a Redis stream, shared by any number of processes and
//! machines.
//!
//! | feature | implementation |
//! |---|---|
//! | confirmed publish as durable as the server's own settings | waiting publishes share a pipeline; with `appendfsync always` the server replies after the fsync |
//! | durable groups, replay by time and position | a Redis consumer group on each topic's stream |
//! | leases, attempts, retries | the group's pending list is the record: entries that wait for an attempt belong to the consumer `~`, the delivery count is the number of attempts made, a sorted set holds the due times |
//! | dead letters, replay to one group | one stream of dead letters for each group and topic; a replayed letter moves to a stream that only this group reads |
//! | keyed order | one active member of a group on each topic; it holds a key with a TTL as its lease, and every script that reads or assigns entries checks this key |
//! | delay, dedup | a sorted set for delayed messages, a key with a TTL for each dedup id; one script handles both together with the publish, and only messages that use them run this script |
//! | requests | a list with a TTL for each subject; answers travel over pub/sub channels |
//!
//! Each subscription has its own connection, which may block. Pub/sub channels carry wake-up messages, but these may be
//! lost: a reader that misses one finds the change at its next periodic check.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subscription::Subscription;
use event_transport::url::BusUrl;
use event_transport::{Admin, Capabilities, Mode, Receipt, Requests, Subscribe, Transport};

#[doc = include_str!("docs.md")]
pub mod docs {}

mod admin;
mod backlog;
mod blocking;
mod broadcast;
mod call;
mod claim;
mod client;
mod codec;
mod config;
mod connection;
mod cursor;
mod dead_letters;
mod delayed;
mod deliver;
mod diagnose;
mod dial;
mod direct;
mod error;
mod fetch;
mod filters;
mod frame;
mod group;
mod housekeeping;
mod in_progress;
mod keyed;
mod keyed_topic;
mod keys;
mod lease;
mod member;
mod membership;
mod new_entries;
mod ownership;
mod publish;
mod pubsub;
mod receive;
mod reply;
mod requests;
mod scripts;
mod serve;
mod server_info;
mod settle;
mod settlement;
mod status;
mod subscribe;
mod unmatched;
mod unread;
mod writer;

use admin::Administrator;
use client::Client;
use config::Config;
use group::Definitions;
use publish::Publisher;
use requests::Rpc;
use subscribe::Groups;

/// An open bus on a Redis server.
///
/// [`docs`] has all options of its URL.
pub struct RedisTransport {
    client: Arc<Client>,
    capabilities: Capabilities,
    publisher: Publisher,
    groups: Groups,
    rpc: Rpc,
    admin: Administrator,
    /// `true` once the bus is closed. The lock makes later calls of `close` wait for the first one.
    finished: tokio::sync::Mutex<bool>,
}

impl RedisTransport {
    /// Connects to the server that `url` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or impossible options and for a server that may evict messages,
    /// [`ErrorKind::Denied`] for wrong credentials or rights, [`ErrorKind::Unsupported`] for a server that is too old,
    /// [`ErrorKind::Unavailable`] when it cannot be reached.
    ///
    /// [`ErrorKind::Config`]: event_transport::ErrorKind::Config
    /// [`ErrorKind::Denied`]: event_transport::ErrorKind::Denied
    /// [`ErrorKind::Unsupported`]: event_transport::ErrorKind::Unsupported
    /// [`ErrorKind::Unavailable`]: event_transport::ErrorKind::Unavailable
    pub async fn open(url: BusUrl) -> Result<Self> {
        let client = Client::open(Config::read(url)?).await?;
        // Ends all tasks if one of the features cannot be started.
        let guard = client.connection.closed.clone().drop_guard();
        let capabilities = capabilities(&client);
        let definitions = Definitions::new(client.clone());
        let publisher = Publisher::open(client.clone());
        let groups = Groups::new(client.clone(), definitions.clone());
        delayed::start(&client).await?;
        let rpc = Rpc::open(client.clone(), capabilities.clone()).await?;
        housekeeping::start(&client);
        let admin = Administrator::new(client.clone(), definitions);
        guard.disarm();
        Ok(Self {
            client,
            capabilities,
            publisher,
            groups,
            rpc,
            admin,
            finished: tokio::sync::Mutex::default(),
        })
    }
}

fn capabilities(client: &Client) -> Capabilities {
    let mut capabilities = Capabilities::new("redis");
    capabilities.persistent = client.facts.persistent;
    capabilities.shared = true;
    capabilities.max_durability = client.facts.durability;
    capabilities.durability = client.facts.durability;
    capabilities.max_payload = client.config.max_payload;
    capabilities.dedup_window = client.config.dedup_window;
    capabilities.delayed = true;
    capabilities.expiry = true;
    capabilities.replay = true;
    capabilities.cross_topic = true;
    capabilities.keyed_members = 1;
    capabilities
}

impl Transport for RedisTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        match self.capabilities.check(&message) {
            Ok(()) => self.publisher.publish(&message),
            Err(error) => Confirm::ready(Err(error.during("publish").with("subject", &message.subject))),
        }
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            self.client.check_open("subscribe")?;
            let spec = spec.checked().map_err(|error| error.during("subscribe"))?;
            match spec.mode.clone() {
                Mode::Broadcast => broadcast::broadcast(&self.client, spec).await,
                Mode::Group(group) => self.groups.subscribe(group, spec).await,
            }
            .map_err(|error| error.during("subscribe"))
        })
    }

    fn requests(&self) -> &dyn Requests {
        &self.rpc
    }

    fn admin(&self) -> &dyn Admin {
        &self.admin
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut finished = self.finished.lock().await;
            if *finished {
                return Ok(());
            }
            self.client.closing.cancel();
            self.rpc.close().await;
            self.groups.close().await;
            self.publisher.close().await;
            self.client.connection.closed.cancel();
            *finished = true;
            Ok(())
        })
    }
}

impl Drop for RedisTransport {
    fn drop(&mut self) {
        self.client.closing.cancel();
        self.groups.abandon();
        self.client.connection.closed.cancel();
    }
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.client.config.server.hosts.iter().map(ToString::to_string).collect();
        f.debug_struct("RedisTransport").field("hosts", &hosts).finish_non_exhaustive()
    }
}
