//! The transport `nats://HOST:PORT` for NATS JetStream, version 2.9 or newer.
//!
//! ```text
//!   publish ─▶ outbound ▶ stream EVT_<ns>_<topic>  ◀─ durable pull consumer per group ─▶ fetch ─▶ Subscription
//!                                  ▲                        ▲                                          │
//!      WRK_<ns> delayed ───────────┘     WRK_<ns> replays ──┘        SYS_<ns> records ◀── settle ◀─ Delivery
//!                                                                    DLQ_<ns> dead letters ◀──┘
//! ```
//!
//! - **One stream per topic**, with Limits retention: a group that is created later, or was not connected, misses no
//!   message.
//! - **Attempts are counted by this library.** The server's delivery count also counts releases, so the attempts of a
//!   message that was released, or that waits for a retry, are recorded in the state stream; only redeliveries read
//!   it.
//! - **A lease is valid until its last confirmed renewal**; renewals are sent every third of the lease. Settling
//!   later returns `LeaseLost`, although the server would still accept the acknowledgement.
//! - **Acknowledgements are sent at once and confirmed on demand**: one confirmed acknowledgement proves all earlier
//!   ones.
//! - **Order per key** needs one working member per group, because the server redelivers a message after later ones.
//!   The others stand by. The leader reads the streams itself and writes one record of the group's progress
//!   (`keyed/`). Pinned clients of 2.11 are no alternative: the server accepts acknowledgements from a replaced
//!   client, too.
//! - **No limit of deliveries on the server** (`max_deliver` is -1): this library counts attempts, so there is never
//!   a `MAX_DELIVERIES` advisory, which is lost without a subscriber, nor an unsettled message left behind by it.
//! - **Batches where each message costs an fsync** (`sync=always`, 2.12): waiting messages share one batch
//!   (`batch.rs`). Elsewhere single messages are faster.
//! - **Delayed publish** uses a work queue whose messages are refused until they are due, on every supported server.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Admin, Capabilities, Receipt, Requests, Subscribe, Transport};
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::Message;
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod api;
mod batch;
mod broadcast;
mod codec;
mod config;
mod connection;
mod dead_letters;
mod delayed;
mod diagnose;
mod double_ack;
mod durability;
mod error;
mod fetch;
mod frame;
mod group;
mod keyed;
mod kv;
mod member;
mod micro;
mod names;
mod outbound;
mod poison;
mod presence;
mod pub_ack;
mod publish;
mod pull;
mod reply;
mod requests;
mod serve;
mod settle;
mod streams;
mod subscribe;

use connection::Connection;

/// One connection to a NATS server or cluster.
#[derive(Debug)]
pub(super) struct NatsTransport {
    connection: Arc<Connection>,
    capabilities: Capabilities,
}

impl NatsTransport {
    /// Connects to the server that `url` names.
    pub(super) async fn open(url: BusUrl) -> Result<Self> {
        let (connection, capabilities) = Connection::open(config::Config::read(url)?).await?;
        Ok(Self { connection, capabilities })
    }
}

impl Transport for NatsTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        self.send(message)
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            subscribe::subscribe(&self.connection, spec).await.map_err(|error| error.during("subscribe"))
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
            self.connection.close().await;
            Ok(())
        })
    }
}
