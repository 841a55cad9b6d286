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
use std::sync::{Arc, Mutex, Weak};

use futures_util::future::BoxFuture;

use super::{Admin, Capabilities, Mode, Receipt, Requests, Subscribe, Transport};
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod backlog;
mod blocking;
mod broadcast;
mod client;
mod codec;
mod config;
mod connection;
mod dead_letters;
mod delayed;
mod deliver;
mod diagnose;
mod dial;
mod error;
mod fetch;
mod filters;
mod frame;
mod group;
mod housekeeping;
mod keyed;
mod keys;
mod lease;
mod member;
mod ownership;
mod publish;
mod pubsub;
mod reply;
mod requests;
mod scripts;
mod serve;
mod server_info;
mod settle;
mod status;
mod subscribe;
mod unmatched;

use client::{Client, Opened};
use config::Config;
use error::closed;

/// An open bus on a Redis server.
pub(super) struct RedisTransport {
    client: Arc<Client>,
    capabilities: Capabilities,
    writer: Mutex<Option<tokio::task::JoinHandle<()>>>,
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
    pub(super) async fn open(url: BusUrl) -> Result<Self> {
        let config = Config::read(url)?;
        let Opened { client, writer } = Client::open(config).await?;
        let mut capabilities = Capabilities::new("redis");
        capabilities.persistent = true;
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
        capabilities.persistent = client.facts.persistent;
        let finished = tokio::sync::Mutex::default();
        Ok(Self { client, capabilities, writer: Mutex::new(Some(writer)), finished })
    }

    fn live(&self, operation: &'static str) -> Result<&Arc<Client>> {
        if self.client.closing.is_cancelled() { Err(closed().during(operation)) } else { Ok(&self.client) }
    }
}

impl Transport for RedisTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if let Err(error) = self.capabilities.check(&message) {
            return Confirm::ready(Err(error.during("publish").with("subject", &message.subject)));
        }
        if !self.client.kept.covers(message.durability) {
            let text = "the server's durability was reduced after this bus was opened; set `appendonly yes` and `appendfsync always` on the server for `fsync`";
            let error = Error::new(ErrorKind::Unsupported, text).with("subject", &message.subject);
            return Confirm::ready(Err(error.during("publish")));
        }
        match &*self.client.outbox.lock().expect("not poisoned") {
            Some(outbox) => outbox.publish(&message, &self.client.keys, &self.client.config),
            None => Confirm::ready(Err(closed().during("publish"))),
        }
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            let client = self.live("subscribe")?;
            let spec = spec.checked().map_err(|error| error.during("subscribe"))?;
            match spec.mode.clone() {
                Mode::Broadcast => broadcast::broadcast(client, spec).await,
                Mode::Group(group) => subscribe::group(client, group, spec).await,
            }
            .map_err(|error| error.during("subscribe"))
        })
    }

    fn requests(&self) -> &dyn Requests {
        self
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut finished = self.finished.lock().await;
            if *finished {
                return Ok(());
            }
            let client = &self.client;
            client.closing.cancel();
            let services: Vec<_> =
                client.services.lock().expect("not poisoned").iter().filter_map(Weak::upgrade).collect();
            for service in services {
                service.close();
                let _ = tokio::time::timeout(client.config.publish_timeout, service.ended.cancelled()).await;
            }
            client.calls.close(client).await;
            let members: Vec<_> = std::mem::take(&mut *client.members.lock().expect("not poisoned"))
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            for member in &members {
                member.hand_back().await;
            }
            // Without its queue, the writer ends when every publish has its reply.
            drop(client.outbox.lock().expect("not poisoned").take());
            let writer = self.writer.lock().expect("not poisoned").take();
            if let Some(writer) = writer {
                let _ = tokio::time::timeout(client.config.publish_timeout, writer).await;
            }
            client.connection.closed.cancel();
            *finished = true;
            Ok(())
        })
    }
}

impl Drop for RedisTransport {
    fn drop(&mut self) {
        self.client.closing.cancel();
        for member in self.client.members.lock().expect("not poisoned").iter().filter_map(Weak::upgrade) {
            member.closed.cancel();
        }
        self.client.connection.closed.cancel();
    }
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.client.config.hosts.iter().map(ToString::to_string).collect();
        f.debug_struct("RedisTransport").field("hosts", &hosts).finish_non_exhaustive()
    }
}
