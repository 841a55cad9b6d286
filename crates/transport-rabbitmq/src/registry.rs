//! Stores the list of groups: AMQP cannot list queues, so one durable queue keeps one message, which is that list.
//!
//! Every read or change of the list holds a lock: an exclusive queue, which the broker gives to one connection at a
//! time and deletes when that connection ends. A change publishes the new list and then acknowledges the old one; after
//! a crash in between there are two lists, of which the one with the higher version counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeleteOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::client::Client;
use super::connection::command;
use super::declare::{arguments, number, word};
use super::error::is_missing;
use super::republish::Republisher;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Pattern;

/// How long to wait while other connections hold the lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the queue must be empty before the list counts as missing.
const EMPTY: Duration = Duration::from_secs(3);

/// The list of groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Registry {
    version: u64,
    /// By name.
    pub(super) groups: BTreeMap<String, Record>,
    /// Deleted groups whose dead letters may still exist.
    #[serde(default)]
    pub(super) buried: Vec<String>,
    /// The exchange of events has a mark, see `bindings.rs`.
    #[serde(default)]
    pub(super) marked: bool,
}

/// The stored facts about a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) filters: Vec<String>,
    #[serde(default)]
    pub(super) keyed: bool,
    /// Delay queues that it has ever used, one bit each.
    #[serde(default)]
    pub(super) rooms: u32,
}

impl Record {
    pub(super) fn patterns(&self) -> Vec<Pattern> {
        self.filters.iter().filter_map(|filter| Pattern::new(filter).ok()).collect()
    }
}

/// One connection's access to the list.
#[derive(Debug)]
pub(super) struct Registrar {
    client: Arc<Client>,
    republisher: Republisher,
    turn: Mutex<()>,
}

/// The lock while it is held.
pub(super) struct Turn<'a> {
    registrar: &'a Registrar,
    what: &'static str,
    _turn: MutexGuard<'a, ()>,
}

impl Registrar {
    pub(super) fn new(client: Arc<Client>, republisher: Republisher) -> Self {
        Self { client, republisher, turn: Mutex::new(()) }
    }

    /// Returns the list.
    pub(super) async fn read(&self) -> Result<Registry> {
        self.change(|_| Ok(false)).await.map(|(list, _)| list)
    }

    /// Runs `edit` on the list under the lock, and stores the list if `edit` returns that it changed it.
    pub(super) async fn change(
        &self,
        edit: impl FnOnce(&mut Registry) -> Result<bool>,
    ) -> Result<(Registry, bool)> {
        self.change_with(async |list| edit(list)).await
    }

    /// Like `change`, with an `edit` that sends commands to the broker.
    pub(super) async fn change_with(
        &self,
        edit: impl AsyncFnOnce(&mut Registry) -> Result<bool>,
    ) -> Result<(Registry, bool)> {
        let turn = self.lock("registry").await?;
        let result = self.locked(edit).await;
        turn.unlock().await;
        result
    }

    async fn locked(
        &self,
        edit: impl AsyncFnOnce(&mut Registry) -> Result<bool>,
    ) -> Result<(Registry, bool)> {
        let channel = self.client.consume.channel().await?;
        let mut list = Registry::default();
        let mut tags = Vec::new();
        let empty = Instant::now();
        loop {
            let get = channel.basic_get(self.client.names.registry(), BasicGetOptions::default());
            let got = match tokio::time::timeout(super::connection::COMMAND, get).await {
                Ok(Ok(got)) => got,
                Ok(Err(error)) if is_missing(&error) => {
                    return self.first(edit).await;
                }
                Ok(Err(error)) => return Err(super::error::amqp(error)),
                Err(_) => return Err(super::error::timeout("read the list of groups")),
            };
            let Some(got) = got else {
                // Another reader returned the list a moment ago, or it was never written because its first writer died.
                if tags.is_empty() && empty.elapsed() < EMPTY {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    continue;
                }
                break;
            };
            let read: Registry = serde_json::from_slice(&got.delivery.data).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the list of groups cannot be read").because(error)
            })?;
            tags.push(got.delivery.delivery_tag);
            if read.version >= list.version {
                list = read;
            }
            if got.message_count == 0 {
                break;
            }
        }
        let last = tags.last().copied();
        let before = list.clone();
        let edited = edit(&mut list).await;
        let store = matches!(edited, Ok(true)) && list != before;
        if store || tags.len() > 1 {
            list.version = before.version + 1;
            if let Err(error) = self.store(&list).await {
                // The old list is still in the queue: closing the channel returns it.
                let _ = channel.close(200, "undone".into()).await;
                return Err(error);
            }
            if let Some(last) = last {
                command("settle", channel.basic_ack(last, BasicAckOptions { multiple: true })).await?;
            }
        } else if let Some(last) = last {
            let back = BasicNackOptions { multiple: true, requeue: true };
            command("give back", channel.basic_nack(last, back)).await?;
        }
        let _ = command("close", channel.close(200, "done".into())).await;
        edited.map(|changed| (list, changed))
    }

    /// There is no list yet: creates it with the first change. The caller that creates a group runs `settle_names`,
    /// which covers all its queues and this one.
    async fn first(&self, edit: impl AsyncFnOnce(&mut Registry) -> Result<bool>) -> Result<(Registry, bool)> {
        let mut list = Registry::default();
        let changed = edit(&mut list).await?;
        if changed {
            let arguments = arguments([
                ("x-queue-type", word("quorum")),
                // Every read takes the message and returns it.
                ("x-delivery-limit", number(1_000_000_000)),
            ]);
            self.client.declarer.declare(self.client.names.registry(), arguments).await?;
            list.version = 1;
            self.store(&list).await?;
        }
        Ok((list, changed))
    }

    async fn store(&self, list: &Registry) -> Result<()> {
        let bytes = serde_json::to_vec(list).expect("maps and strings");
        let properties = lapin::BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into());
        self.republisher.to_queue(self.client.names.registry(), properties, bytes.into()).await
    }

    /// Waits for one of the namespace's locks.
    pub(super) async fn lock(&self, what: &'static str) -> Result<Turn<'_>> {
        let turn = self.turn.lock().await;
        let end = Instant::now() + PATIENCE;
        while !self.client.declarer.claim(self.client.names.lock(what)).await? {
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Unavailable, "another process holds the lock")
                    .with("lock", self.client.names.lock(what)));
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..10))).await;
        }
        Ok(Turn { registrar: self, what, _turn: turn })
    }
}

impl Turn<'_> {
    pub(super) async fn unlock(self) {
        let lock = self.registrar.client.names.lock(self.what);
        let freed = self.registrar.client.declarer.run("free a lock", async |channel| {
            channel.queue_delete(lock, QueueDeleteOptions::default()).await
        });
        if let Err(error) = freed.await {
            // The broker frees the lock at the latest when the connection ends.
            tracing::debug!(%error, "a lock is freed later");
        }
    }
}
