//! `nats://HOST:PORT`: NATS JetStream, 2.9 or newer, used the way its experts would.
//!
//! ```text
//!   publish ─▶ outbound ▶ stream EVT_<ns>_<topic>  ◀─ durable pull consumer per group ─▶ fetch ─▶ Subscription
//!                                  ▲                        ▲                                          │
//!      WRK_<ns> delayed ───────────┘     WRK_<ns> replays ──┘        SYS_<ns> records ◀── settle ◀─ Delivery
//!                                                                    DLQ_<ns> dead letters ◀──┘
//! ```
//!
//! - **One stream per topic**, Limits retention: a group that comes later, or was away, misses nothing.
//! - **Attempts are counted here.** The server's delivery count knows nothing of releases, so what was released, or
//!   waits for a retry, is on record in the state stream; only redeliveries read it.
//! - **A lease is valid until its last confirmed renewal**; renewals are sent every third of the lease. Settling later
//!   returns `LeaseLost`, although the server would still accept the acknowledgement.
//! - **Acknowledgements are sent at once and confirmed on demand**: one confirmed acknowledgement proves all earlier ones.
//! - **Order per key** needs one working member per group, for the server redelivers behind what came later. The others
//!   stand by. The one that leads reads the streams itself and writes one record of how far the group is (`keyed/`).
//!   Pinned clients of 2.11 would not do: their acknowledgements are taken from whoever was overtaken, too.
//! - **No limit of deliveries on the server** (`max_deliver` is -1): attempts are this library's, so there is never a
//!   `MAX_DELIVERIES` advisory, which nobody hears when nobody listens, nor a message that stays behind it unsettled.
//! - **Batches where each message costs an fsync** (`sync=always`, 2.12): what waits shares one (`batch.rs`). Elsewhere
//!   single messages are faster.
//! - **Delayed publish** waits in a work queue that is refused until its time, on every server alike.

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
mod outage;
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
