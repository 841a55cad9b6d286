//! The transport `memory:` and `memory:NAME`: a bus within one process, and the reference behaviour for every
//! transport.
//!
//! All connections that open the same name share the bus, and it ends with its last connection. Its messages do not
//! survive the process, so it offers no durability. One lock guards the whole state: every step is short, and no task
//! waits while it holds the lock.
//!
//! ```text
//!   publish ─▶ log (bounded history) ─▶ group: ready │ in flight │ delayed ─▶ feeding task ─▶ Subscription
//!                    │                          ▲          │                        settle ◀─── Delivery
//!                    └─▶ broadcast listeners    └──────────┘ retry, release, end of lease
//! ```
//!
//! Each file uses only files above it in this list:
//!
//! | file | concept |
//! |---|---|
//! | `log` | published messages in order, bounded; counts the groups and dead letters that need each one |
//! | `config` | the options of a URL |
//! | `dedup`, `delayed` | ids seen within the dedup window; messages that are not due yet |
//! | `group/` | one group: the queue of its unsettled entries, and its members |
//! | `groups`, `listeners` | all groups, all broadcast subscriptions |
//! | `routes` | cache: the groups and listeners of a subject |
//! | `dead_letters` | rejected messages |
//! | `state` | all of the above under one lock, and the steps that change several parts together |
//! | `servers` | the members that serve requests |
//! | `bus` | state and servers, shared by the connections to one name |
//! | `connection` | one connection: its rights and its end |
//! | `publish`, `settle`, `admin` | short steps under the lock |
//! | `feeding` | the waits of a task that feeds a subscription |
//! | `member`, `broadcast`, `subscribe` | subscriptions to a group or to all messages, and their tasks |
//! | `reply`, `requests` | one reply in frames; requests and their servers |

use std::sync::Arc;

use futures_util::future::BoxFuture;

use self::admin::MemoryAdmin;
use self::bus::Bus;
use self::connection::Connection;
use self::requests::MemoryRequests;
use super::{Admin, Capabilities, Provision, Receipt, Requests, Subscribe, Transport};
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::Message;
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod broadcast;
mod bus;
mod config;
mod connection;
mod dead_letters;
mod dedup;
mod delayed;
mod feeding;
mod group;
mod groups;
mod listeners;
mod log;
mod member;
mod publish;
mod reply;
mod requests;
mod routes;
mod servers;
mod settle;
mod state;
mod subscribe;
#[cfg(test)]
mod tests;

pub use config::MemoryConfig;

/// A connection to a bus in memory.
#[derive(Debug)]
pub struct MemoryTransport {
    connection: Arc<Connection>,
    requests: MemoryRequests,
    admin: MemoryAdmin,
}

impl MemoryTransport {
    /// Opens the bus that `url` names, shared with all connections to the same name; `memory:` means the name
    /// `default`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for unknown or impossible options, or when the bus is open
    /// with other options.
    pub fn open(url: BusUrl) -> Result<Self> {
        let (name, config, provision) = MemoryConfig::from_url(url)?;
        Ok(Self::on(Bus::named(&name, config)?, provision))
    }

    /// Creates a bus without a name, for a test or a part of a program. [`MemoryTransport::connect`] opens more
    /// connections to it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for limits under which no message could be stored.
    pub fn private(config: MemoryConfig) -> Result<Self> {
        Ok(Self::on(Bus::new(config)?, Provision::Create))
    }

    /// Opens another connection to the same bus, with its own `close`.
    pub fn connect(&self) -> Self {
        Self::on(self.connection.bus.clone(), self.connection.provision)
    }

    fn on(bus: Arc<Bus>, provision: Provision) -> Self {
        let connection = Connection::open(bus, provision);
        Self { requests: MemoryRequests::new(&connection), admin: MemoryAdmin::new(&connection), connection }
    }
}

impl Transport for MemoryTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.connection.bus.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        Confirm::ready(publish::publish(&self.connection, message).map_err(|error| error.during("publish")))
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            subscribe::subscribe(&self.connection, spec).map_err(|error| error.during("subscribe"))
        })
    }

    fn requests(&self) -> &dyn Requests {
        &self.requests
    }

    fn admin(&self) -> &dyn Admin {
        &self.admin
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.connection.close();
            Ok(())
        })
    }
}
