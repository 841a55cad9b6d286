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
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::admin::Operator;
use self::client::Client;
use self::config::{Config, Storage};
use self::dead_letters::DeadLetters;
use self::delayed::Delayed;
use self::group::Groups;
use self::presence::Presence;
use self::publish::Publisher;
use self::rpc::Rpc;
use self::subscribe::Subscriber;
use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subscription::Subscription;
use event_transport::url::BusUrl;
use event_transport::{Admin, Capabilities, Receipt, Requests, Subscribe, Transport};

#[doc = include_str!("docs.md")]
pub mod docs {}

mod ack_log;
mod admin;
mod api;
mod attempts;
mod batch;
mod broadcast;
mod client;
mod codec;
mod config;
mod dead_letters;
mod delayed;
mod diagnose;
mod double_ack;
mod durability;
mod error;
mod fetch;
mod frame;
mod group;
mod in_flight;
mod keyed;
mod kv;
mod link;
mod member;
mod micro;
mod names;
mod outbound;
mod pending_replies;
mod poison;
mod presence;
mod pub_ack;
mod publish;
mod pull;
mod reply;
mod requests;
mod rpc;
mod serve;
mod settle;
mod skipped;
mod source;
mod streams;
mod subscribe;
mod topics;

/// One connection to a NATS server or cluster.
///
/// [`docs`] has all options of its URL.
pub struct NatsTransport {
    client: Arc<Client>,
    capabilities: Capabilities,
    presence: Arc<Presence>,
    publisher: Arc<Publisher>,
    subscriber: Subscriber,
    rpc: Arc<Rpc>,
    operator: Operator,
}

impl NatsTransport {
    /// Connects to the server that `url` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or impossible options, [`ErrorKind::Denied`] for refused credentials,
    /// [`ErrorKind::Unsupported`] for a server that is too old or has no JetStream, [`ErrorKind::Unavailable`] when no
    /// server answers.
    ///
    /// [`ErrorKind::Config`]: event_transport::ErrorKind::Config
    /// [`ErrorKind::Denied`]: event_transport::ErrorKind::Denied
    /// [`ErrorKind::Unsupported`]: event_transport::ErrorKind::Unsupported
    /// [`ErrorKind::Unavailable`]: event_transport::ErrorKind::Unavailable
    pub async fn open(url: BusUrl) -> Result<Self> {
        let client = Client::open(Config::read(url)?).await?;
        let capabilities = capabilities(&client);
        let presence = Presence::new(&client);
        let groups = Groups::new(&client, &presence);
        let dead_letters = DeadLetters::new(&groups);
        let delayed = Delayed::new(&groups);
        let publisher = Publisher::new(&groups, &delayed);
        let rpc = Rpc::new(&client, &capabilities);
        let (calls, publishes) = (Arc::downgrade(&rpc), Arc::downgrade(&publisher));
        let broken = move || {
            if let Some(rpc) = calls.upgrade() {
                rpc.let_go();
            }
            if let Some(publisher) = publishes.upgrade() {
                publisher.abandon();
            }
        };
        client.start(publisher.resend(), broken).await?;
        let subscriber = Subscriber::new(&dead_letters, &delayed);
        let operator = Operator::new(&dead_letters);
        Ok(Self { client, capabilities, presence, publisher, subscriber, rpc, operator })
    }
}

/// Returns what this transport does with the server and the options of the URL.
fn capabilities(client: &Client) -> Capabilities {
    let config = &client.config;
    let mut capabilities = Capabilities::new("nats");
    capabilities.persistent = config.streams.storage == Storage::File;
    capabilities.shared = true;
    capabilities.max_durability = durability::promised(config);
    capabilities.durability = capabilities.max_durability;
    capabilities.max_payload = client.server.max_payload;
    capabilities.dedup_window = config.streams.dedup_window;
    capabilities.delayed = true;
    capabilities.expiry = true;
    capabilities.replay = true;
    capabilities.cross_topic = true;
    capabilities.keyed_members = 1;
    capabilities
}

impl std::fmt::Debug for NatsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsTransport").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Transport for NatsTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if self.client.outbound.is_closing() {
            return Confirm::ready(Err(error::closed()));
        }
        if let Err(error) = self.capabilities.check(&message) {
            return Confirm::ready(Err(error));
        }
        self.publisher.publish(message)
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(
            async move { self.subscriber.subscribe(spec).await.map_err(|error| error.during("subscribe")) },
        )
    }

    fn requests(&self) -> &dyn Requests {
        &*self.rpc
    }

    fn admin(&self) -> &dyn Admin {
        &self.operator
    }

    /// Settles, flushes and closes. One call is enough; a second one waits for the first.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.client.outbound.stop_taking();
            self.rpc.let_go();
            self.presence.close().await;
            let patience = self.client.config.publish_timeout.min(Duration::from_secs(5));
            let stored = async {
                self.publisher.idle().await;
                self.client.outbound.idle().await;
            };
            let _ = tokio::time::timeout(patience, stored).await;
            self.client.close(patience).await;
            Ok(())
        })
    }
}
