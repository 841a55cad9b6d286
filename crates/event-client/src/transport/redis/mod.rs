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

mod active;
mod admin;
mod broadcast;
mod clock;
mod codec;
mod config;
mod connection;
mod dead;
mod deliver;
mod diagnose;
mod ear;
mod error;
mod fetch;
mod filters;
mod group;
mod janitor;
mod keyed;
mod keys;
mod lease;
mod link;
mod member;
mod packet;
mod probe;
mod publish;
mod reader;
mod reply;
mod requests;
mod scripts;
mod serve;
mod server;
mod settle;
mod skip;
mod status;
mod subscribe;
mod turns;

use config::Config;
use connection::{Handle, Opened};
use error::closed;

/// One handle on a server.
pub(super) struct RedisTransport {
    handle: Arc<Handle>,
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
        let Opened { handle, writer } = Handle::open(config).await?;
        let mut capabilities = Capabilities::new("redis");
        capabilities.persistent = true;
        capabilities.shared = true;
        capabilities.max_durability = handle.facts.durability;
        capabilities.durability = handle.facts.durability;
        capabilities.max_payload = handle.config.max_payload;
        capabilities.dedup_window = handle.config.dedup_window;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.replay = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = 1;
        capabilities.persistent = handle.facts.persistent;
        let finished = tokio::sync::Mutex::default();
        Ok(Self { handle, capabilities, writer: Mutex::new(Some(writer)), finished })
    }

    fn live(&self, operation: &'static str) -> Result<&Arc<Handle>> {
        if self.handle.closing.is_cancelled() { Err(closed().during(operation)) } else { Ok(&self.handle) }
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
        if !self.handle.kept.covers(message.durability) {
            let text = "the server was set to keep less than it did when this connection was made; set `appendonly yes` and `appendfsync always` there for `fsync`";
            let error = Error::new(ErrorKind::Unsupported, text).with("subject", &message.subject);
            return Confirm::ready(Err(error.during("publish")));
        }
        match &*self.handle.outbox.lock().expect("not poisoned") {
            Some(outbox) => outbox.publish(&message, &self.handle.keys, &self.handle.config),
            None => Confirm::ready(Err(closed().during("publish"))),
        }
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            let handle = self.live("subscribe")?;
            let spec = spec.checked().map_err(|error| error.during("subscribe"))?;
            match spec.mode.clone() {
                Mode::Broadcast => broadcast::broadcast(handle, spec).await,
                Mode::Group(group) => subscribe::group(handle, group, spec).await,
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
            let handle = &self.handle;
            handle.closing.cancel();
            let services: Vec<_> =
                handle.services.lock().expect("not poisoned").iter().filter_map(Weak::upgrade).collect();
            for service in services {
                service.close();
                let _ = tokio::time::timeout(handle.config.publish_timeout, service.ended.cancelled()).await;
            }
            handle.calls.close(handle).await;
            let members: Vec<_> = std::mem::take(&mut *handle.members.lock().expect("not poisoned"))
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            for member in &members {
                member.hand_back().await;
            }
            // Without its queue the writer ends when everything is answered.
            drop(handle.outbox.lock().expect("not poisoned").take());
            let writer = self.writer.lock().expect("not poisoned").take();
            if let Some(writer) = writer {
                let _ = tokio::time::timeout(handle.config.publish_timeout, writer).await;
            }
            handle.link.closed.cancel();
            *finished = true;
            Ok(())
        })
    }
}

impl Drop for RedisTransport {
    fn drop(&mut self) {
        self.handle.closing.cancel();
        for member in self.handle.members.lock().expect("not poisoned").iter().filter_map(Weak::upgrade) {
            member.closed.cancel();
        }
        self.handle.link.closed.cancel();
    }
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.handle.config.hosts.iter().map(ToString::to_string).collect();
        f.debug_struct("RedisTransport").field("hosts", &hosts).finish_non_exhaustive()
    }
}
