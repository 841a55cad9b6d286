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
//! - A group is one quorum queue (`group`); one message stores the list of groups (`registry`).
//! - The broker confirms publishes after the quorum has fsynced them (`publish`). Copies are `mandatory`, and
//!   returned copies are detected (`republish`). Publishing and consuming use separate connections (`connection`).
//! - **Keyed groups have a single active consumer**: the broker gives the queue to the next member only after all
//!   messages of the previous one are back in their places, so a take-over loses no order. The owner holds a failed
//!   message and, behind it, the next ones of its key (`ledger`, `journal`); other keys continue, up to
//!   `keyed_backlog` held messages.
//! - Only the members have the state of messages in flight; other connections query them (`members`).
//!
//! Not supported: history (`Start::Earliest` and the like), positions, and publish deduplication.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subscription::Subscription;
use event_transport::url::BusUrl;
use event_transport::{
    Admin, Capabilities, IncomingRequest, Mode, Receipt, Replies, Requests, Serve, Subscribe, Transport,
};

#[doc = include_str!("docs.md")]
pub mod docs {}

mod acks;
mod admin;
mod attempts;
mod bindings;
mod broadcast;
mod calls;
mod client;
mod codec;
mod config;
mod connection;
mod copies;
mod dead_letters;
mod declare;
mod delay_queues;
mod delayed;
mod deliveries;
mod delivery_tags;
mod diagnose;
mod error;
mod group;
mod handshake;
mod journal;
mod ledger;
mod mailbox;
mod member;
mod members;
mod names;
mod publish;
mod queries;
mod registry;
mod reply;
mod republish;
mod requests;
mod serve;
mod served;
mod session;
mod settle;
mod subscribe;
mod writing;

use admin::Administration;
use bindings::Bindings;
use broadcast::Broadcasts;
use calls::Calls;
use client::Client;
use config::Config;
use dead_letters::DeadLetters;
use delay_queues::DelayQueues;
use delayed::Delayed;
use group::Groups;
use mailbox::{Mailbox, Routes};
use members::Members;
use publish::Publisher;
use queries::Queries;
use registry::Registrar;
use republish::Republisher;
use requests::Caller;
use serve::Server;
use served::Served;
use subscribe::Subscriber;

/// How long publishes, members and requests may take to end when the bus is closed.
const GOODBYE: Duration = Duration::from_secs(12);

/// An open bus on RabbitMQ.
///
/// [`docs`] has all options of its URL.
#[derive(Debug)]
pub struct RabbitTransport {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    members: Arc<Members>,
    publisher: Arc<Publisher>,
    delayed: Arc<Delayed>,
    subscriber: Subscriber,
    broadcasts: Broadcasts,
    caller: Caller,
    server: Server,
    administration: Administration,
}

impl RabbitTransport {
    /// Connects to the broker that `url` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](event_transport::ErrorKind::Config) for unknown or impossible options,
    /// [`ErrorKind::Denied`](event_transport::ErrorKind::Denied) for refused credentials, permissions and vhosts,
    /// [`ErrorKind::Unavailable`](event_transport::ErrorKind::Unavailable) when no broker answers.
    pub async fn open(url: BusUrl) -> Result<Self> {
        let client = Client::connect(Config::from_url(url)?).await?;
        let republisher = Republisher::start(client.publish.clone());
        let registrar = Arc::new(Registrar::new(client.clone(), republisher.clone()));
        let bindings = Arc::new(Bindings::new(client.clone(), registrar.clone()));
        if client.config.provision.creates() {
            bindings.stand().await?;
        }
        tokio::spawn(bindings.clone().watch());
        let publisher = Arc::new(Publisher::start(client.clone(), bindings.clone()));

        let (asked, questions) = mpsc::unbounded_channel();
        let queries = Arc::new(Queries::new(asked));
        let (calls, served) = (Arc::new(Calls::default()), Arc::new(Served::default()));
        let routes = Routes { queries: queries.clone(), calls: calls.clone(), served: served.clone() };
        let mailbox = Arc::new(Mailbox::new(client.clone(), routes));
        let members = Members::start(client.clone(), mailbox.clone(), queries, questions);

        let (base, list, copier) = (|| client.clone(), || registrar.clone(), || republisher.clone());
        let dead_letters = Arc::new(DeadLetters::new(base(), list(), copier()));
        let delay_queues = Arc::new(DelayQueues::new(base(), list(), copier()));
        let groups = Arc::new(Groups::new(base(), list(), bindings.clone(), dead_letters.clone()));
        let delayed =
            Arc::new(Delayed::new(base(), members.clone(), delay_queues.clone(), publisher.clone()));
        let subscriber = Subscriber {
            client: base(),
            republisher: copier(),
            mailbox: mailbox.clone(),
            members: members.clone(),
            groups: groups.clone(),
            delay_queues: delay_queues.clone(),
            dead_letters: dead_letters.clone(),
            delayed: delayed.clone(),
        };
        Ok(Self {
            subscriber,
            broadcasts: Broadcasts::new(base(), mailbox.clone(), delayed.clone()),
            caller: Caller::new(base(), mailbox.clone(), calls),
            server: Server::new(base(), mailbox.clone(), served),
            administration: Administration {
                client: base(),
                registrar: list(),
                bindings,
                groups,
                dead_letters,
                delay_queues,
                members: members.clone(),
            },
            client,
            mailbox,
            members,
            publisher,
            delayed,
        })
    }
}

impl Transport for RabbitTransport {
    fn capabilities(&self) -> &Capabilities {
        &self.client.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if let Err(error) = self.client.check().and_then(|()| self.client.capabilities.check(&message)) {
            return Confirm::ready(Err(error.during("publish")));
        }
        if delay_queues::left(message.deliver_at).is_some() {
            return self.delayed.publish(message);
        }
        self.publisher.publish(&message)
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        Box::pin(async move {
            let open = async {
                self.client.check()?;
                let spec = spec.checked()?;
                match spec.mode.clone() {
                    Mode::Group(group) => {
                        let step = || Box::pin(self.subscriber.subscribe(group.clone(), spec.clone())) as _;
                        self.client.patiently(step).await
                    }
                    Mode::Broadcast => {
                        self.client.patiently(|| Box::pin(self.broadcasts.subscribe(spec.clone()))).await
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
        &self.administration
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.client.closing.cancel();
            // Publishes get their confirmations and held messages are given back, each within its own time limit.
            let calm = async {
                tokio::join!(self.publisher.finished(), self.members.ended(), self.mailbox.calm());
            };
            let _ = tokio::time::timeout(GOODBYE, calm).await;
            self.client.close().await;
            Ok(())
        })
    }
}

impl Requests for RabbitTransport {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let call = async {
                self.client.check()?;
                self.client.capabilities.check(&request)?;
                self.caller.call(request, within).await
            };
            call.await.map_err(|error| error.during("call"))
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            let serve = async {
                self.client.check()?;
                self.client.patiently(|| Box::pin(self.server.serve(spec.clone()))).await
            };
            serve.await.map_err(|error| error.during("serve"))
        })
    }
}

impl Drop for RabbitTransport {
    fn drop(&mut self) {
        self.client.closing.cancel();
        self.client.down.cancel();
    }
}
