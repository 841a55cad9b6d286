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

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Admin, Capabilities, Provision, Receipt, Requests, Subscribe, Transport};
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::Message;
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod config;
mod connection;
mod group;
mod log;
mod publish;
mod requests;
mod settle;
mod subscribe;
#[cfg(test)]
mod tests;

pub use config::MemoryConfig;
use connection::{Bus, Connection};

/// A connection to a bus in memory.
#[derive(Debug)]
pub struct MemoryTransport {
    connection: Arc<Connection>,
    capabilities: Capabilities,
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
        let mut capabilities = Capabilities::new("memory");
        capabilities.max_payload = bus.config.max_payload;
        capabilities.dedup_window = bus.config.dedup_window;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.replay = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = usize::MAX;
        Self { connection: Connection::open(bus, provision), capabilities }
    }
}

impl Transport for MemoryTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
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
        self
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.connection.close();
            Ok(())
        })
    }
}
