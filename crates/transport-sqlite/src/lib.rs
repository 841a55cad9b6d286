//! The default transport `sqlite:PATH`: a durable log in one SQLite file, shared by the processes of one machine.
//!
//! | feature | implementation |
//! |---|---|
//! | confirmed publish that survives loss of power | WAL with `synchronous=FULL`; publishes that wait at the same time share a commit |
//! | durable groups, leases, retries, dead letters, replay, delay, expiry, dedup | tables; fresh messages are leased in runs, not one by one |
//! | several processes | one writer each, taking turns; a file per process to wake it and to check that it runs |
//! | keyed order | one member of a keyed group works, the others stand by |
//! | requests | within a process over a private memory transport (`rpc/local.rs`), through tables between processes |
//!
//! | not supported | alternative |
//! |---|---|
//! | more than one machine | any of the brokers |
//! | parallel members of one keyed group | parallel keys within its one active member |

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subscription::Subscription;
use event_transport::url::BusUrl;
use event_transport::{Admin, Capabilities, Receipt, Requests, Subscribe, Transport};

#[doc = include_str!("docs.md")]
pub mod docs {}

mod activation;
mod admin;
mod broadcast;
mod claim;
mod codec;
mod config;
mod connection;
mod database;
mod error;
mod failover;
mod fetch;
mod file;
mod filters;
mod fresh;
mod group;
mod group_feed;
mod handle;
mod housekeeping;
mod keyed;
mod lease;
mod leased;
mod member;
mod membership;
mod postponed;
mod processes;
mod publish;
mod records;
mod redelivery;
mod requests;
mod resume;
mod rpc;
mod scan;
mod schema;
mod script;
mod segment;
mod selection;
mod settle;
mod subscribe;
mod subscriptions;
mod tail_cache;
mod wake;
mod write_queue;
mod writer;

use admin::Operations;
use config::Config;
use handle::Handle;
use publish::Publish;
use requests::Calls;
use subscriptions::Subscriptions;

/// The SQLite transport: one handle of a database file.
///
/// [`docs`] has all options of its URL.
pub struct SqliteTransport {
    handle: Arc<Handle>,
    subscriptions: Subscriptions,
    calls: Calls,
    operations: Operations,
}

impl SqliteTransport {
    /// Opens the file that `url` names, and creates it if it does not exist and `provision` allows it. All handles of
    /// one process share the open database.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or invalid options, [`ErrorKind::NotFound`] for a missing folder or a file
    /// that may not be created, [`ErrorKind::Denied`] without permission to write, [`ErrorKind::Corrupt`] for a file of
    /// another program or a newer version, [`ErrorKind::Unavailable`] when another program has locked the file.
    ///
    /// [`ErrorKind::Config`]: event_transport::ErrorKind::Config
    /// [`ErrorKind::NotFound`]: event_transport::ErrorKind::NotFound
    /// [`ErrorKind::Denied`]: event_transport::ErrorKind::Denied
    /// [`ErrorKind::Corrupt`]: event_transport::ErrorKind::Corrupt
    /// [`ErrorKind::Unavailable`]: event_transport::ErrorKind::Unavailable
    pub async fn open(url: BusUrl) -> Result<Self> {
        let config = Config::read(url)?;
        let open = connection::open(&config.path, &config.storage, config.provision).await?;
        let local = open.rpc.connect();
        let handle = Arc::new(Handle::new(open, &config));
        Ok(Self {
            subscriptions: Subscriptions::new(handle.clone()),
            calls: Calls::new(handle.clone(), local),
            operations: Operations::new(handle.clone()),
            handle,
        })
    }
}

impl Transport for SqliteTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.handle.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if let Some(error) = self.handle.refuse(&message) {
            return Confirm::ready(Err(error));
        }
        let (answer, confirm) = Confirm::channel();
        let fsync = self.handle.fsyncs(message.durability);
        self.handle.database.queue.publish(Publish::new(&message, fsync, answer));
        confirm
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(self.subscriptions.open(spec))
    }

    fn requests(&self) -> &dyn Requests {
        &self.calls
    }

    fn admin(&self) -> &dyn Admin {
        &self.operations
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let Some(open) = self.handle.close() else { return Ok(()) };
            self.subscriptions.end_broadcasts();
            self.calls.close().await?;
            self.subscriptions.leave_groups().await;
            // The writer works in order: when the ping returns, all earlier publishes of this handle are stored.
            let flushed = self.handle.database.ping().await.map(drop);
            drop(open);
            if self.handle.database.closing.is_cancelled() {
                self.handle.database.finished.cancelled().await;
            }
            flushed
        })
    }
}

impl fmt::Debug for SqliteTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransport")
            .field("file", &self.handle.database.file.path())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sqlx::{ConnectOptions, Connection};

    use super::wake::POLL;
    use super::*;
    use event_transport::subject::{Group, Pattern};

    #[tokio::test]
    async fn an_idle_bus_wakes_no_subscription_until_another_process_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.db");
        let bus = SqliteTransport::open(format!("sqlite:{}", path.display()).parse().unwrap()).await.unwrap();
        let spec = Subscribe::group(Group::new("g").unwrap(), [Pattern::new("a.>").unwrap()]);
        let member = bus.subscribe(spec).await.unwrap();
        let mut changed = bus.handle.database.wake.subscribe();
        // The first look at the file wakes the tasks.
        tokio::time::sleep(2 * POLL).await;
        changed.borrow_and_update();
        tokio::time::sleep(2 * POLL).await;
        assert!(!changed.has_changed().unwrap());
        let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
        sqlx::raw_sql("DELETE FROM dedup; PRAGMA user_version = 1").execute(&mut other).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.unwrap().unwrap();
        other.close().await.unwrap();
        drop(member);
        bus.close().await.unwrap();
    }
}
