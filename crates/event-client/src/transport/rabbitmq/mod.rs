//! The transport for `amqp://HOST` and `amqps://HOST`: RabbitMQ 3.10 or later, over AMQP 0.9.1.
//!
//! ```text
//!  publish ─▶ NS.evt (topic) ─▶ NS.group.GROUP (quorum) ─▶ member ─▶ Subscription
//!                                     ▲   ▲                  │ retry: a copy, then ack
//!                                     │   └─ NS.retry.GROUP.MS ◀┤ (one delay queue per duration; dead-lettering returns the copy)
//!                                     └── release, replay ◀─────┤
//!                                         NS.dlq.GROUP ◀────────┘ reject: a copy, then ack
//! ```
//!
//! - A group is one quorum queue ([`group`]); one message stores the list of groups ([`registry`]).
//! - The broker confirms publishes after the quorum has fsynced them ([`publish`]). Copies are `mandatory`, and
//!   returned copies are detected ([`republish`]). Publishing and consuming use separate connections ([`connection`]).
//! - **Keyed groups have a single active consumer**: the broker gives the queue to the next member only after all
//!   messages of the previous one are back in their places, so a take-over loses no order. The owner holds a failed
//!   message and, behind it, the next ones of its key ([`member`], [`attempts`]); other keys continue, up to
//!   `keyed_backlog` held messages.
//! - Only the members have the state of messages in flight; other connections query them ([`client_bus`]).
//!
//! Not supported: history (`Start::Earliest` and the like), positions, and publish deduplication.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Admin, Capabilities, IncomingRequest, Mode, Receipt, Replies, Requests, Serve, Subscribe, Transport,
};
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::{Durability, Message};
use crate::subject::Group;
use crate::subscription::Subscription;
use crate::url::BusUrl;

mod admin;
mod attempts;
mod bindings;
mod broadcast;
mod client_bus;
mod codec;
mod config;
mod connection;
mod dead_letters;
mod declare;
mod delay_queues;
mod delayed;
mod delivery_tags;
mod diagnose;
mod error;
mod group;
mod handshake;
mod member;
mod names;
mod publish;
mod receive;
mod registry;
mod reply;
mod republish;
mod requests;
mod serve;
mod settle;
mod shutdown;

use bindings::Bindings;
use client_bus::ClientBus;
use config::Config;
use connection::{Backoff, Link};
use declare::Declarer;
use delay_queues::DelayQueues;
use error::{closed, is_passing};
use names::Names;
use publish::Publisher;
use registry::Registrar;
use republish::Republisher;

/// An open bus on RabbitMQ.
#[derive(Debug)]
pub(super) struct RabbitTransport {
    inner: Arc<Inner>,
}

/// The state that the parts of one bus share.
#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    capabilities: Capabilities,
    names: Names,
    consume: Arc<Link>,
    publish: Arc<Link>,
    declarer: Arc<Declarer>,
    republisher: Republisher,
    publisher: Publisher,
    registrar: Arc<Registrar>,
    bindings: Arc<Bindings>,
    delay_queues: DelayQueues,
    /// Delay queues that the registry records, by group, one bit each.
    rooms: Mutex<HashMap<Group, u32>>,
    client_bus: Arc<ClientBus>,
    /// Whether the queue of delayed publishes exists.
    delays: tokio::sync::Mutex<bool>,
    moving: AtomicBool,
    /// Cancelled when closing begins: no new work is accepted.
    closing: CancellationToken,
    /// Cancelled when the connections end.
    down: CancellationToken,
}

impl RabbitTransport {
    /// Connects to the broker that `url` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for unknown or impossible options, [`ErrorKind::Denied`] for refused credentials,
    /// permissions and vhosts, [`ErrorKind::Unavailable`] when no broker answers.
    pub(super) async fn open(url: BusUrl) -> Result<Self> {
        let config = Arc::new(Config::from_url(url)?);
        let mut capabilities = Capabilities::new("rabbitmq");
        capabilities.persistent = true;
        capabilities.shared = true;
        capabilities.max_durability = Durability::Fsync;
        capabilities.durability = Durability::Fsync;
        capabilities.max_payload = config.max_payload;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = 1;
        let names = Names::new(&config.namespace);
        // When the connections end for good, all tasks that use them must end too.
        let down = CancellationToken::new();
        let closing = down.child_token();
        let consume = Arc::new(Link::new(config.clone(), "consumes", down.clone()));
        let publish = Arc::new(Link::new(config.clone(), "publishes", down.clone()));
        // Connects now, so that an unreachable broker is an error at once.
        let declarer = Arc::new(Declarer::new(consume.clone()));
        consume.connection().await?;
        let republisher = Republisher::start(publish.clone());
        let registrar =
            Arc::new(Registrar::new(names.clone(), consume.clone(), declarer.clone(), republisher.clone()));
        let bindings = Arc::new(Bindings::new(
            names.clone(),
            publish.clone(),
            declarer.clone(),
            registrar.clone(),
            config.provision,
        ));
        if config.provision.creates() {
            bindings.stand().await?;
        }
        let publisher = {
            let makes = config.provision.creates().then(|| (names.events(), bindings.clone()));
            Publisher::start(publish.clone(), config.publish_timeout, makes, closing.clone())
        };
        tokio::spawn(bindings.clone().watch(closing.clone()));
        let client_bus = ClientBus::new(
            names.clone(),
            consume.clone(),
            publish.clone(),
            declarer.clone(),
            closing.clone(),
        );
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                capabilities,
                names,
                consume,
                publish,
                declarer,
                republisher,
                publisher,
                registrar,
                bindings,
                delay_queues: DelayQueues::default(),
                rooms: Mutex::default(),
                client_bus,
                delays: tokio::sync::Mutex::default(),
                moving: AtomicBool::new(false),
                closing,
                down,
            }),
        })
    }
}

impl Inner {
    fn check(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Runs `step` until it succeeds or fails for good; waits for an unreachable broker as long as a publish does.
    async fn patiently<'a, T>(&self, step: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let end = Instant::now() + self.config.publish_timeout;
        let mut backoff = Backoff::default();
        loop {
            match step().await {
                Err(error) if is_passing(&error) && Instant::now() < end && !self.closing.is_cancelled() => {
                    tracing::debug!(%error, "the operation failed; trying again in a moment");
                    backoff.pause().await;
                }
                result => return result,
            }
        }
    }

    fn publish_now(&self, message: &Message) -> Confirm<Receipt> {
        match codec::publication(message, Timestamp::now()) {
            Ok(properties) => {
                let (exchange, key) = (self.names.events(), message.subject.as_str().into());
                self.publisher.publish(exchange, key, properties, message.payload.clone())
            }
            Err(error) => Confirm::ready(Err(error)),
        }
    }

    async fn close(&self) {
        self.closing.cancel();
        // Publishes get their confirmations and held messages are given back, each within its own time limit.
        let members = async {
            while !self.client_bus.members.lock().expect("not poisoned").is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let calm = async {
            tokio::join!(self.publisher.finished(), members, self.client_bus.calm());
        };
        let _ = tokio::time::timeout(Duration::from_secs(12), calm).await;
        self.down.cancel();
        tokio::join!(self.consume.close(), self.publish.close());
    }
}

impl Transport for RabbitTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        let inner = &self.inner;
        if let Err(error) = inner.check().and_then(|()| inner.capabilities.check(&message)) {
            return Confirm::ready(Err(error.during("publish")));
        }
        if delay_queues::left(message.deliver_at).is_some() {
            let (answer, confirm) = Confirm::channel();
            let inner = inner.clone();
            tokio::spawn(async move {
                let result = inner.publish_later(message).await;
                let _ = answer.send(result.map_err(|error| error.during("publish")));
            });
            return confirm;
        }
        inner.publish_now(&message)
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            let open = async {
                self.inner.check()?;
                let spec = spec.checked()?;
                match spec.mode.clone() {
                    Mode::Group(group) => {
                        let step = || Box::pin(self.inner.subscribe_group(group.clone(), spec.clone())) as _;
                        self.inner.patiently(step).await
                    }
                    Mode::Broadcast => {
                        self.inner.patiently(|| Box::pin(self.inner.subscribe_all(spec.clone()))).await
                    }
                }
            };
            open.await.map_err(|error| error.during("subscribe"))
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
            self.inner.close().await;
            Ok(())
        })
    }
}

impl Requests for RabbitTransport {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let call = async {
                self.inner.check()?;
                self.inner.capabilities.check(&request)?;
                let queue = self.inner.names.requests(request.subject.as_str());
                requests::call(&self.inner.client_bus, queue, request, within).await
            };
            call.await.map_err(|error| error.during("call"))
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            let member = || serve::Member {
                client_bus: self.inner.client_bus.clone(),
                link: self.inner.consume.clone(),
                names: self.inner.names.clone(),
                closed: self.inner.closing.clone(),
                max_payload: self.inner.capabilities.max_payload,
            };
            let serve = async {
                self.inner.check()?;
                self.inner.patiently(|| Box::pin(member().serve(spec.clone()))).await
            };
            serve.await.map_err(|error| error.during("serve"))
        })
    }
}

impl Drop for RabbitTransport {
    fn drop(&mut self) {
        self.inner.closing.cancel();
        self.inner.down.cancel();
    }
}
