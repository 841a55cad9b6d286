//! `redis://HOST`: a log per topic on Redis Streams, shared by any number of processes and machines.
//!
//! | gives | how |
//! |---|---|
//! | confirmed publish as durable as the server's own settings | what waits shares a pipeline; with `appendfsync always` a reply comes after the fsync |
//! | durable groups, replay by time and position | a Redis consumer group on each topic's stream |
//! | leases, attempts, retries | the group's pending list is the record: what waits belongs to the consumer `~`, its delivery count is the number of attempts made, a sorted set has the times |
//! | dead letters, replay to one group | a stream for each group and topic; a replayed letter goes to a stream that this group alone reads |
//! | keyed order | one active member of a group on each topic, by a key with a lease that every script checks |
//! | delay, dedup | a sorted set; a key with a TTL; both in one script with the publish, and only when asked for |
//! | requests | a list with a TTL for each subject, answers over channels |
//!
//! Each subscription has a connection of its own that may block. Hints travel over channels, but no hint is the
//! record: whoever misses one finds out at intervals.

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

/// One handle on a server.
pub(super) struct RedisTransport {
    client: Arc<Client>,
    capabilities: Capabilities,
    writer: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Closing happens once; whoever comes later waits for it.
    finished: tokio::sync::Mutex<bool>,
}

impl RedisTransport {
    /// Connects to the server that `url` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or impossible options and for a server that may throw messages away,
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
            let text = "the server was set to keep less than it did when this connection was made; set `appendonly yes` and `appendfsync always` there for `fsync`";
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
            // Without its queue the writer ends when everything is answered.
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
