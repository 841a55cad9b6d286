//! One member of a group: a task that owns a channel, the messages that were fetched on it, and their settlements.
//!
//! ```text
//!  broker ─▶ arrive ─▶ [lane of its key] ─▶ ready ─▶ out (delivered) ─▶ ack │ copy, then ack
//!                            ▲                 ▲            │ retry of a keyed one
//!                            └── next of key ──┴── waits ◀──┘
//! ```
//!
//! A delivered message belongs to the member as long as the channel is open: the broker keeps no lease. A lease starts
//! when the subscription was dropped and the delivery is not settled. A process that dies loses its channel, and the
//! broker delivers all of its messages to other members.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::client_bus::Holding;
use super::codec::Facts;
use super::connection::{Backoff, command};
use super::delivery_tags::DeliveryTags;
use super::group::Command;
use super::settle::{Asker, Settler};
use super::shutdown::healthy;
use crate::bounds;
use crate::delivery::Token;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Group;
use crate::subscription::{Feed, Health};
use crate::transport::key_queue::KeyQueue;
use crate::transport::{Subscribe, consumer_name};

/// Maximum number of settlements that are handled before acknowledgements are written.
const BATCH: usize = 256;
/// Maximum number of messages that wait to be acknowledged while there is other work.
const BUNDLE: usize = 64;

/// A fetched message.
pub(super) struct Item {
    pub(super) tag: u64,
    pub(super) message: Arc<Message>,
    /// Its `attempt` follows from the broker's count.
    pub(super) facts: Facts,
    /// The actual attempt number.
    pub(super) attempt: u32,
}

impl Item {
    /// The difference between the actual attempt number and the broker's count.
    pub(super) fn offset(&self) -> i64 {
        i64::from(self.attempt) - i64::from(self.facts.attempt)
    }
}

/// An item that is delivered to a consumer and not settled.
pub(super) struct Out {
    pub(super) item: Item,
    /// Set when the subscription was dropped.
    pub(super) lease: Option<Instant>,
}

/// A copy in progress: its item, the caller to notify, and the result.
pub(super) type Copying = BoxFuture<'static, (Item, Option<Asker>, Result<()>)>;

/// A bundle of acknowledgements that is being written.
pub(super) type Writing = BoxFuture<'static, (Vec<Asker>, Result<()>)>;

pub(super) struct Session {
    channel: Channel,
    consumer: Consumer,
    name: String,
}

pub(super) struct Member {
    pub(super) inner: Arc<Inner>,
    pub(super) group: Group,
    pub(super) spec: Subscribe,
    pub(super) feed: Feed,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) settler: Arc<Settler>,
    pub(super) id: u64,
    pub(super) tokens: u64,
    pub(super) seen: u64,
    pub(super) tags: DeliveryTags,
    /// Tag of a delivery that arrived before its predecessor: the channel is unreliable and must be closed.
    pub(super) gap: Option<u64>,
    pub(super) out: HashMap<Token, Out>,
    pub(super) ready: VecDeque<Item>,
    pub(super) lanes: KeyQueue<Item>,
    /// Keyed retries, and messages that are nearly due, by time.
    pub(super) waits: BTreeMap<(Instant, u64), (Item, bool)>,
    pub(super) copying: FuturesUnordered<Copying>,
    /// Tags of messages that return to their place in the queue.
    pub(super) returned: Vec<u64>,
    /// Acknowledgements that are being written to the connection, and the callers to notify afterwards.
    pub(super) writing: Option<Writing>,
    /// Callers to notify after the next bundle is written.
    pub(super) told: Vec<Asker>,
    /// When the last bundle was written.
    pub(super) last_told: Option<Instant>,
    /// Attempts and due times of a keyed group's messages that the broker does not report, by message.
    pub(super) counted: super::attempts::Counted,
    /// The write to the journal in progress, and the callers to notify afterwards.
    pub(super) noting: Option<Writing>,
    /// Callers to notify after the next write to the journal.
    pub(super) to_note: Vec<Asker>,
    pub(super) stopping: bool,
    pub(super) gone: bool,
}

/// The reason for the end of a session.
pub(super) enum End {
    /// The subscription has ended.
    Over,
    /// The channel was lost.
    Broken(Error),
}

async fn open(inner: Arc<Inner>, group: Group, prefetch: u16) -> Result<Session> {
    let channel = inner.consume.channel().await?;
    command("set the credit", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let name = consumer_name().to_string();
    let consume = channel.basic_consume(
        inner.names.group(&group),
        name.as_str().into(),
        BasicConsumeOptions::default(),
        inner.consume.patience(),
    );
    let consumer = command("consume", consume).await.map_err(|error| error.with("group", &group))?;
    Ok(Session { channel, consumer, name })
}

impl Member {
    pub(super) fn new(
        inner: Arc<Inner>,
        group: Group,
        spec: Subscribe,
        feed: Feed,
        commands: mpsc::UnboundedReceiver<Command>,
        settler: Arc<Settler>,
        id: u64,
    ) -> Self {
        Self {
            inner,
            group,
            spec,
            feed,
            commands,
            settler,
            id,
            tokens: 0,
            seen: 0,
            tags: DeliveryTags::default(),
            gap: None,
            out: HashMap::new(),
            ready: VecDeque::new(),
            lanes: KeyQueue::default(),
            waits: BTreeMap::new(),
            copying: FuturesUnordered::new(),
            returned: Vec::new(),
            told: Vec::new(),
            last_told: None,
            writing: None,
            counted: super::attempts::Counted::default(),
            noting: None,
            to_note: Vec::new(),
            stopping: false,
            gone: false,
        }
    }

    pub(super) fn prefetch(&self) -> u16 {
        let max_in_flight = self.spec.max_in_flight.max(1);
        let most =
            if self.spec.keyed { max_in_flight + self.inner.config.keyed_backlog } else { max_in_flight };
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    /// Starts to consume.
    pub(super) fn open(&self) -> impl Future<Output = Result<Session>> + Send + use<> {
        open(self.inner.clone(), self.group.clone(), self.prefetch())
    }

    pub(super) async fn run(mut self, session: Session) {
        let mut session = Some(session);
        let mut backoff = Backoff::default();
        loop {
            let Some(open) = session.take() else {
                if self.stopping || self.over() {
                    break;
                }
                match self.reopen().await {
                    Ok(Some(open)) => {
                        tracing::info!(group = %self.group, "the subscription is live again");
                        backoff.reset();
                        session = Some(open);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if backoff.tries() == 0 {
                            tracing::warn!(%error, group = %self.group, "the subscription is being rebuilt");
                        }
                        self.feed.report(Health::Rebuilding(error.to_string()));
                        self.pause(&mut backoff).await;
                    }
                }
                continue;
            };
            match self.work(open).await {
                End::Over => break,
                End::Broken(error) => {
                    self.feed.report(Health::Rebuilding(error.to_string()));
                    tracing::debug!(%error, group = %self.group, "a subscription lost its channel");
                    self.forget();
                }
            }
        }
        self.inner.client_bus.members.lock().expect("not poisoned").remove(&self.id);
        self.refuse_rest();
    }

    fn over(&self) -> bool {
        self.feed.stopped().is_cancelled() || self.inner.closing.is_cancelled()
    }

    /// Waits before the next try; settlements that arrive meanwhile are refused as too late.
    async fn pause(&mut self, backoff: &mut Backoff) {
        let over = self.feed.stopped().clone();
        let closing = self.inner.closing.clone();
        let pause = backoff.pause();
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = over.cancelled() => return,
                () = closing.cancelled() => return,
                Some(command) = self.commands.recv() => self.refuse(command),
            }
        }
    }

    /// Opens a new channel; `None` when the group has been deleted.
    async fn reopen(&mut self) -> Result<Option<Session>> {
        match self.open().await {
            Ok(session) => return Ok(Some(session)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let list = self.inner.registrar.read().await?;
        if list.buried.iter().any(|name| name == self.group.as_str()) {
            return Ok(None);
        }
        if !self.inner.config.provision.creates() {
            return Err(self
                .inner
                .config
                .provision
                .missing(format!("queue {}", self.inner.names.group(&self.group))));
        }
        // A user deleted it, or the broker was killed before it had stored the queue.
        tracing::warn!(group = %self.group, "the group's queue is missing; it is created again, empty");
        self.inner.restore(&self.group, &self.spec).await?;
        self.open().await.map(Some)
    }

    async fn work(&mut self, session: Session) -> End {
        let Session { channel, mut consumer, name } = session;
        let mut fences: FuturesUnordered<BoxFuture<'static, oneshot::Sender<Holding>>> =
            FuturesUnordered::new();
        let mut batch = Vec::with_capacity(BATCH);
        // Messages are acknowledged together when this number is reached, and when there is no other work.
        let bundle = usize::from(self.prefetch()).div_ceil(4).min(BUNDLE);
        let mut exhausted = false;
        let stopped = self.feed.stopped().clone();
        let gone = self.feed.gone().clone();
        let closing = self.inner.closing.clone();
        let mut bindings = self.inner.bindings.trouble();
        self.feed.report(healthy(&bindings.borrow_and_update()));
        loop {
            if let Some(tag) = self.gap {
                return self.mistrust(&channel, tag).await;
            }
            self.hand_out();
            self.note();
            if self.tags.to_tell() >= bundle {
                self.flush(&channel);
            }
            if self.stopping && self.may_leave(exhausted) {
                return self.leave(&channel).await;
            }
            let next = self.next_time();
            let full = !self.ready.is_empty() && !self.stopping;
            tokio::select! {
                biased;
                arrival = consumer.next(), if !exhausted => match arrival {
                    Some(Ok(delivery)) => {
                        self.receive(delivery).await;
                        // More deliveries may have arrived; the work that follows is done once for all of them.
                        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                            self.receive(delivery).await;
                        }
                    }
                    None if self.stopping => exhausted = true,
                    Some(Err(error)) => return End::Broken(super::error::amqp(error)),
                    None => return End::Broken(Error::new(ErrorKind::Unavailable, "the broker cancelled the consumer")),
                },
                Ok(()) = bindings.changed() => self.feed.report(healthy(&bindings.borrow_and_update())),
                () = closing.cancelled() => return self.hand_back(&channel, &name, &mut consumer).await,
                () = stopped.cancelled(), if !self.stopping => {
                    // The next owner of a keyed group must not start before all messages of this one are back.
                    if !self.spec.keyed {
                        if let Err(error) = self.stop_consuming(&channel, &name, &mut consumer).await {
                            return End::Broken(error);
                        }
                        self.release_untaken();
                    }
                    self.stopping = true;
                }
                () = gone.cancelled(), if !self.gone => {
                    self.gone = true;
                    let until = bounds::from_now(self.spec.lease);
                    self.out.values_mut().for_each(|out| out.lease = Some(until));
                }
                count = self.commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return End::Over;
                    }
                    for command in batch.drain(..) {
                        match command {
                            Command::Settle(token, settlement, answer) => self.settle(token, settlement, answer),
                            Command::Progress(token, answer) => drop(answer.send(self.progress(token))),
                            Command::Status(answer) => {
                                // Deliveries that the broker has sent on this channel arrive before its answer.
                                let (channel, prefetch) = (channel.clone(), self.prefetch());
                                fences.push(Box::pin(async move {
                                    let _ = super::connection::command(
                                        "look",
                                        channel.basic_qos(prefetch, BasicQosOptions::default()),
                                    )
                                    .await;
                                    answer
                                }));
                            }
                            Command::GiveUp(answer) => {
                                self.give_up().await;
                                if let Err(error) = self.flush_all(&channel).await {
                                    return End::Broken(error);
                                }
                                let _ = answer.send(self.holding());
                            }
                            Command::End(answer) => {
                                self.forget();
                                let _ = super::connection::command("close", channel.close(200, "deleted".into())).await;
                                let _ = answer.send(self.holding());
                                return End::Over;
                            }
                        }
                    }
                }
                Some((item, answer, result)) = self.copying.next() => self.copied(&channel, item, answer, result).await,
                Some(answer) = fences.next() => drop(answer.send(self.holding())),
                written = async { self.writing.as_mut().expect("checked").await }, if self.writing.is_some() => {
                    if let Err(error) = self.wrote(written) {
                        return End::Broken(error);
                    }
                }
                noted = async { self.noting.as_mut().expect("checked").await }, if self.noting.is_some() => self.noted(noted),
                slot = self.feed.slot(), if full => drop(slot),
                () = async { sleep_until(next.expect("checked")).await }, if next.is_some() => self.pass(&channel).await,
                () = std::future::ready(()), if self.writing.is_none() && self.owes() => self.flush(&channel),
            }
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let leases = self.out.values().filter_map(|out| out.lease);
        let lease = if self.gone { leases.min() } else { None };
        let wait = self.waits.keys().next().map(|(at, _)| *at);
        [lease, wait].into_iter().flatten().min()
    }
}
