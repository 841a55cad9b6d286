//! The default transport `sqlite:PATH`: a durable log in one SQLite file, shared by the processes of one machine.
//!
//! | feature | implementation |
//! |---|---|
//! | confirmed publish that survives loss of power | WAL with `synchronous=FULL`; publishes that wait at the same time share a commit |
//! | durable groups, leases, retries, dead letters, replay, delay, expiry, dedup | tables; fresh messages are leased in runs, not one by one |
//! | several processes | one writer each, taking turns; a file per process to wake it and to check that it runs |
//! | keyed order | one member of a keyed group works, the others stand by |
//! | requests | in memory within a process, through tables between processes |
//!
//! | not supported | alternative |
//! |---|---|
//! | more than one machine | any of the brokers |
//! | parallel members of one keyed group | parallel keys within its one active member |

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Admin, Capabilities, MemoryTransport, Mode, Provision, Receipt, Requests, Subscribe, Transport};
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Durability, Message};
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod broadcast;
mod claim;
mod codec;
mod config;
mod connection;
mod error;
mod failover;
mod fetch;
mod filters;
mod group;
mod housekeeping;
mod keyed;
mod lease;
mod member;
mod processes;
mod publish;
mod requests;
mod rpc;
mod scan;
mod schema;
mod settle;
mod subscribe;
mod tail_cache;
mod writer;

use config::Config;
use connection::{Database, Open};
use error::{closed, lost};
use member::Member;

/// The SQLite transport: one handle of a database file.
pub struct SqliteTransport {
    /// `None` once closed.
    open: Mutex<Option<Arc<Open>>>,
    database: Arc<Database>,
    durability: Durability,
    provision: Provision,
    capabilities: Capabilities,
    members: Mutex<Vec<Weak<Member>>>,
    tails: CancellationToken,
    /// This handle's connection to the in-memory bus for requests within the process.
    calls: MemoryTransport,
    closed: AtomicBool,
}

impl SqliteTransport {
    /// Opens the file that `url` names, and creates it if it does not exist and `provision` allows it. All handles of
    /// one process share the open database.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or invalid options, [`ErrorKind::NotFound`] for a missing folder or a file
    /// that may not be created, [`ErrorKind::Denied`] without permission to write, [`ErrorKind::Corrupt`] for a file of
    /// another program or a newer version, [`ErrorKind::Unavailable`] when another program has locked the file.
    pub async fn open(url: BusUrl) -> Result<Self> {
        let config = Config::read(url)?;
        let open = connection::open(&config.path, &config.storage, config.provision).await?;
        Ok(Self::new(open, &config))
    }

    fn new(open: Arc<Open>, config: &Config) -> Self {
        let mut capabilities = Capabilities::new("sqlite");
        capabilities.persistent = true;
        capabilities.shared = true;
        capabilities.max_durability = config.durability;
        capabilities.durability = config.durability;
        capabilities.max_payload = config.max_payload;
        capabilities.dedup_window = config.storage.dedup_window;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.replay = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = 1;
        Self {
            database: Arc::clone(&open),
            durability: config.durability,
            provision: config.provision,
            capabilities,
            members: Mutex::default(),
            tails: CancellationToken::new(),
            calls: open.here.connect(),
            closed: AtomicBool::new(false),
            open: Mutex::new(Some(open)),
        }
    }

    fn live(&self, operation: &'static str) -> Result<Arc<Open>> {
        let open = self.open.lock().expect("not poisoned").clone().ok_or_else(|| closed(operation))?;
        // The writer task has panicked: only a new handle, which opens the file again, can work.
        if open.inbox.is_closed() {
            return Err(closed(operation));
        }
        open.intact().map_err(|gone| lost(&gone, operation))?;
        Ok(open)
    }

    fn refuse(&self, message: &Message) -> Option<Error> {
        let about = |error: Error| error.during("publish").with("subject", &message.subject);
        if self.closed.load(Ordering::Acquire) {
            return Some(closed("publish"));
        }
        if message.durability > self.durability {
            let text = "this bus confirms publishes before the fsync; open it with `synchronous=full` for messages that must survive loss of power";
            return Some(about(Error::new(ErrorKind::Unsupported, text)));
        }
        self.capabilities.check(message).err().map(about)
    }
}

impl Transport for SqliteTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if let Some(error) = self.refuse(&message) {
            return Confirm::ready(Err(error));
        }
        let (answer, confirm) = Confirm::channel();
        let fsync = match message.durability {
            Durability::Default => self.durability == Durability::Fsync,
            class => class == Durability::Fsync,
        };
        self.database.inbox.publish(publish::Publish::new(&message, fsync, answer));
        confirm
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            let open = self.live("subscribe")?;
            let spec = spec.checked().map_err(|error| error.during("subscribe"))?;
            match spec.mode.clone() {
                Mode::Broadcast => broadcast::broadcast(open, spec, self.tails.child_token()).await,
                Mode::Group(group) => {
                    let fsync = self.durability == Durability::Fsync;
                    let (member, subscription) =
                        subscribe::group(open, group, spec, fsync, self.provision).await?;
                    let mut members = self.members.lock().expect("not poisoned");
                    members.retain(|member| member.strong_count() > 0);
                    members.push(Arc::downgrade(&member));
                    Ok(subscription)
                }
            }
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
            self.closed.store(true, Ordering::Release);
            let Some(open) = self.open.lock().expect("not poisoned").take() else { return Ok(()) };
            self.tails.cancel();
            self.calls.close().await?;
            let members = std::mem::take(&mut *self.members.lock().expect("not poisoned"));
            for member in members.iter().filter_map(Weak::upgrade) {
                member.close().await;
            }
            // The writer works in order: when the ping returns, all earlier publishes of this handle are stored.
            let flushed = ping(&open).await.map(drop);
            let database: Arc<Database> = Arc::clone(&open);
            drop(open);
            if database.closing.is_cancelled() {
                database.finished.cancelled().await;
            }
            flushed
        })
    }
}

/// Measures a round trip through the writer to the file.
async fn ping(database: &Arc<Database>) -> Result<Duration> {
    let start = Instant::now();
    let job = database.write("ping", |connection| {
        Box::pin(async move {
            sqlx::query("SELECT 1 FROM consumer_group LIMIT 1").execute(connection).await.map(drop)
        })
    });
    job.await?;
    Ok(start.elapsed())
}

impl fmt::Debug for SqliteTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransport").field("file", &self.database.path).finish_non_exhaustive()
    }
}
