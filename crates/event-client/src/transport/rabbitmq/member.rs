//! One member of a group: a task that owns a channel, what was fetched on it, and what becomes of it.
//!
//! ```text
//!  broker ─▶ arrive ─▶ [lane of its key] ─▶ ready ─▶ out (consumers' hands) ─▶ ack │ copy, then ack
//!                            ▲                 ▲            │ retry of a keyed one
//!                            └── next of key ──┴── waits ◀──┘
//! ```
//!
//! What is out is ours as long as the channel lives: the broker keeps no lease. A lease begins to run when the consumer
//! has gone without settling; a process that dies loses its channel, and the broker gives all of it to others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use smol_str::SmolStr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::codec::Facts;
use super::connection::{Backoff, command};
use super::group::Command;
use super::peer::Holding;
use super::settle::{Settler, lost};
use super::tags::{Ack, Tags};
use super::{Inner, codec, tiers};
use crate::confirm::Answer;
use crate::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::{Group, Subject};
use crate::subscription::{Feed, Health};
use crate::transport::lanes::Lanes;
use crate::transport::{Subscribe, consumer_name};

/// Most settlements that are handled before acknowledgements are written.
const BATCH: usize = 256;
/// How long a member that closes may take to give back what it has.
const GOODBYE: Duration = Duration::from_secs(3);
/// How long a member that stops waits for what the broker has on its way.
const CALM: Duration = Duration::from_millis(300);

/// A fetched message.
struct Item {
    tag: u64,
    message: Arc<Message>,
    /// Its attempt in here is what the broker's count makes it.
    facts: Facts,
    /// What it is.
    attempt: u32,
}

impl Item {
    /// What the broker's count lacks.
    fn offset(&self) -> i64 {
        i64::from(self.attempt) - i64::from(self.facts.attempt)
    }
}

/// An item in a consumer's hands.
struct Out {
    item: Item,
    /// Runs when the consumer has gone.
    lease: Option<Instant>,
}

/// A copy under way: its tag, whom to tell, and what came of it.
type Copying = BoxFuture<'static, (Item, Option<Answer<()>>, Result<()>)>;

pub(super) struct Session {
    channel: Channel,
    consumer: Consumer,
    name: String,
}

pub(super) struct Member {
    inner: Arc<Inner>,
    group: Group,
    spec: Subscribe,
    feed: Feed,
    commands: mpsc::UnboundedReceiver<Command>,
    settler: Arc<Settler>,
    id: u64,
    tokens: u64,
    seen: u64,
    tags: Tags,
    out: HashMap<Token, Out>,
    ready: VecDeque<Item>,
    lanes: Lanes<Item>,
    /// Keyed retries and what is nearly due, by time.
    waits: BTreeMap<(Instant, u64), (Item, bool)>,
    copying: FuturesUnordered<Copying>,
    /// Whom to tell when the acknowledgements are written.
    told: Vec<Answer<()>>,
    /// Attempts of a keyed group that the broker's own count does not tell, by message.
    pub(super) counted: super::journal::Counted,
    stopping: bool,
    gone: bool,
}

/// Why a session ended.
enum End {
    /// The subscription is over.
    Over,
    /// The channel is gone.
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
        FieldTable::default(),
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
            tags: Tags::default(),
            out: HashMap::new(),
            ready: VecDeque::new(),
            lanes: Lanes::default(),
            waits: BTreeMap::new(),
            copying: FuturesUnordered::new(),
            told: Vec::new(),
            counted: super::journal::Counted::default(),
            stopping: false,
            gone: false,
        }
    }

    fn prefetch(&self) -> u16 {
        let credit = self.spec.credit.max(1);
        let most = if self.spec.keyed { credit + self.inner.config.keyed_backlog } else { credit };
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    /// Begins to consume.
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
            self.feed.report(Health::Live);
            match self.work(open).await {
                End::Over => break,
                End::Broken(error) => {
                    self.feed.report(Health::Rebuilding(error.to_string()));
                    tracing::debug!(%error, group = %self.group, "a subscription lost its channel");
                    self.forget();
                }
            }
        }
        self.inner.peer.members.lock().expect("not poisoned").remove(&self.id);
    }

    fn over(&self) -> bool {
        self.feed.stopped().is_cancelled() || self.inner.closing.is_cancelled()
    }

    /// Waits before the next try, telling who settles meanwhile that it is too late.
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

    /// Answers a command for which there is no channel.
    fn refuse(&mut self, command: Command) {
        match command {
            Command::Settle(_, Settlement::Release, answer) => drop(answer.send(Ok(()))),
            Command::Settle(_, _, answer) | Command::Progress(_, answer) => drop(answer.send(Err(lost()))),
            Command::Status(answer) | Command::GiveUp(answer) | Command::End(answer) => {
                drop(answer.send(self.holding()));
            }
        }
    }

    /// A new channel; `None` when the group has been deleted.
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
        // By hand, or by a broker that was killed before it had written it down.
        tracing::warn!(group = %self.group, "the group's queue has vanished; it is made again, empty");
        self.inner.restore(&self.group, &self.spec).await?;
        self.open().await.map(Some)
    }

    /// The channel is gone, and with it everything that was fetched: the broker gives it out again.
    fn forget(&mut self) {
        if self.spec.keyed {
            self.note_untaken();
        }
        self.tags = Tags::default();
        self.out.clear();
        self.ready.clear();
        drop(self.lanes.drain().collect::<Vec<_>>());
        self.waits.clear();
        self.copying.clear();
        self.told.clear();
    }

    /// All that we have comes again with the broker's count raised by one, though no consumer tried some of it.
    fn note_untaken(&mut self) {
        let waits = self.waits.values().map(|(item, _)| item);
        let untaken = self.ready.iter().chain(waits).chain(self.lanes.iter());
        for item in untaken {
            self.counted.keep(&item.message, item.offset() - 1);
        }
        for out in self.out.values() {
            self.counted.keep(&out.item.message, out.item.offset());
        }
    }

    async fn work(&mut self, session: Session) -> End {
        let Session { channel, mut consumer, name } = session;
        let mut fences: FuturesUnordered<BoxFuture<'static, oneshot::Sender<Holding>>> =
            FuturesUnordered::new();
        let mut batch = Vec::with_capacity(BATCH);
        let mut exhausted = false;
        let stopped = self.feed.stopped().clone();
        let gone = self.feed.gone().clone();
        let closing = self.inner.closing.clone();
        loop {
            self.hand_out();
            if let Err(error) = self.flush(&channel).await {
                return End::Broken(error);
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
                        self.arrive(delivery).await;
                        // More may be here; what they lead to is done for all of them.
                        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                            self.arrive(delivery).await;
                        }
                    }
                    None if self.stopping => exhausted = true,
                    Some(Err(error)) => return End::Broken(super::error::amqp(error)),
                    None => return End::Broken(Error::new(ErrorKind::Unavailable, "the broker cancelled the consumer")),
                },
                () = closing.cancelled() => return self.hand_back(&channel, &name, &mut consumer).await,
                () = stopped.cancelled(), if !self.stopping => {
                    // A keyed group's next owner must not begin before all that we have is back.
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
                    let until = Instant::now() + self.spec.lease;
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
                                // What the broker has sent on this channel arrives before its answer.
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
                                if let Err(error) = self.flush(&channel).await {
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
                slot = self.feed.slot(), if full => drop(slot),
                () = async { sleep_until(next.expect("checked")).await }, if next.is_some() => self.pass(&channel).await,
            }
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let lease = self.out.values().filter_map(|out| out.lease).min();
        let wait = self.waits.keys().next().map(|(at, _)| *at);
        [lease, wait].into_iter().flatten().min()
    }

    /// Takes what the broker sent.
    async fn arrive(&mut self, delivery: lapin::message::Delivery) {
        self.seen += 1;
        let tag = delivery.delivery_tag;
        self.tags.received(tag);
        let payload = Bytes::from(delivery.data);
        let key = delivery.routing_key.as_str();
        let read = match codec::read(key, &delivery.properties, payload.clone()) {
            Ok(read) => read,
            Err(error) => return self.undecodable(tag, key, payload, &error),
        };
        if self.spec.keyed && read.returns > 0 {
            self.counted.load(&self.inner, &self.group).await;
        }
        let message = Arc::new(read.message);
        let mut facts = read.facts;
        let first = facts.attempt;
        facts.attempt = first.saturating_add(read.returns);
        let mut attempt = i64::from(facts.attempt) + self.counted.offset(&message);
        // Behind another of its key nobody can have tried it, however often it was fetched.
        if read.returns > 0
            && self.spec.keyed
            && message.key.as_ref().is_some_and(|key| self.lanes.is_busy(key))
        {
            attempt = attempt.min(first.into());
        }
        let attempt = u32::try_from(attempt).unwrap_or(1).max(1);
        let item = Item { tag, message, facts, attempt };
        if self.stopping && !self.spec.keyed {
            return self.copy_back(item);
        }
        if let Some(left) = tiers::left(item.facts.due) {
            if tiers::tier(left).is_some() {
                let (inner, group) = (self.inner.clone(), self.group.clone());
                let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
                let message = item.message.clone();
                self.copying.push(Box::pin(async move {
                    let queue = inner.names.group(&group);
                    let result = inner.wait_and_deliver(Some(&group), queue, &message, &facts).await;
                    (item, None, result)
                }));
            } else {
                self.wait(Instant::now() + left, item, false);
            }
            return;
        }
        self.line_up(item);
    }

    fn line_up(&mut self, item: Item) {
        match self.key(&item) {
            Some(key) => {
                if let Some(free) = self.lanes.offer(&key, item) {
                    self.ready.push_back(free);
                }
            }
            None => self.ready.push_back(item),
        }
    }

    fn key(&self, item: &Item) -> Option<SmolStr> {
        if self.spec.keyed { item.message.key.clone() } else { None }
    }

    fn wait(&mut self, until: Instant, item: Item, retry: bool) {
        self.tokens += 1;
        self.waits.insert((until, self.tokens), (item, retry));
    }

    /// A foreign message that cannot be ours: a dead letter with the bytes that came.
    fn undecodable(&mut self, tag: u64, routing_key: &str, payload: Bytes, error: &Error) {
        let subject = Subject::new("foreign").expect("a valid subject");
        let message = Arc::new(Message::new(subject, "application/octet-stream", payload));
        let item = Item { tag, message, facts: Facts::default(), attempt: 1 };
        let rejection = Rejection::new(
            Reason::Undecodable,
            format!("the routing key {routing_key:?} is no subject: {error}"),
        );
        self.bury(item, rejection, None);
    }

    /// Gives consumers what they have room for.
    fn hand_out(&mut self) {
        if self.stopping {
            return;
        }
        while let Some(item) = self.ready.front() {
            let expired = item.message.expires_at.is_some_and(|at| at <= Timestamp::now());
            if expired && !item.facts.replayed {
                let item = self.ready.pop_front().expect("just seen");
                metrics::counter!("event_client_expired_total", "transport" => "rabbitmq").increment(1);
                self.tags.settle(item.tag);
                self.finish(&item);
                continue;
            }
            let Some(slot) = self.feed.try_slot() else { return };
            let mut item = self.ready.pop_front().expect("just seen");
            item.facts.first_attempt_at.get_or_insert_with(Timestamp::now);
            self.tokens += 1;
            let mut info = DeliveryInfo::new(item.attempt);
            info.published_at = item.facts.published_at;
            info.replayed = item.facts.replayed;
            let delivery = Delivery::new(item.message.clone(), info, self.settler.clone(), self.tokens, slot);
            self.out.insert(self.tokens, Out { item, lease: None });
            self.feed.push(delivery);
        }
    }

    /// The message is settled for good: the next of its key may go.
    fn finish(&mut self, item: &Item) {
        if self.spec.keyed {
            self.counted.forget(&item.message);
            if let Some(key) = &item.message.key
                && let Some(next) = self.lanes.finish(key)
            {
                self.ready.push_back(next);
            }
        }
    }

    fn progress(&mut self, token: Token) -> Result<()> {
        let out = self.out.get_mut(&token).ok_or_else(|| lost().during("renew"))?;
        if out.lease.is_some() {
            out.lease = Some(Instant::now() + self.spec.lease);
        }
        Ok(())
    }

    fn settle(&mut self, token: Token, settlement: Settlement, answer: Answer<()>) {
        let Some(Out { item, .. }) = self.out.remove(&token) else {
            let told = match settlement {
                Settlement::Release => Ok(()),
                _ => Err(lost().during("settle")),
            };
            let _ = answer.send(told);
            return;
        };
        match settlement {
            Settlement::Ack => {
                self.tags.settle(item.tag);
                self.told.push(answer);
                self.finish(&item);
            }
            Settlement::Retry { after, .. } if self.spec.keyed => self.retry_here(item, after, answer),
            Settlement::Retry { after, .. } => {
                let facts =
                    Facts { attempt: item.attempt.saturating_add(1), due: None, ..item.facts.clone() };
                self.copy(item, facts, after, Some(answer));
            }
            Settlement::Reject(rejection) => self.bury(item, rejection, Some(answer)),
            Settlement::Release if self.spec.keyed => {
                // In front of the next of its key, which waits for it.
                self.ready.push_front(item);
                let _ = answer.send(Ok(()));
            }
            Settlement::Release => {
                let facts = Facts { attempt: item.attempt, due: None, ..item.facts.clone() };
                self.copy(item, facts, Duration::ZERO, Some(answer));
            }
        }
    }

    /// A keyed message waits here, and the next of its key behind it; the broker keeps its place in the queue.
    fn retry_here(&mut self, mut item: Item, after: Duration, answer: Answer<()>) {
        item.attempt = item.attempt.saturating_add(1);
        self.counted.keep(&item.message, item.offset() - 1);
        let journal = self.counted.store(&self.inner, &self.group);
        tokio::spawn(async move {
            // Should it fail, a crash costs the count of attempts, not the message.
            if let Err(error) = journal.await {
                tracing::debug!(%error, "the attempts of a keyed message are not written down");
            }
            let _ = answer.send(Ok(()));
        });
        self.wait(Instant::now() + after.min(Duration::from_secs(86_400 * 365)), item, true);
    }

    fn copy(&mut self, item: Item, facts: Facts, after: Duration, answer: Option<Answer<()>>) {
        let copied = self.inner.clone().copy_to_group(self.group.clone(), item.message.clone(), facts, after);
        self.copying.push(Box::pin(async move {
            let result = copied.await;
            (item, answer, result)
        }));
    }

    fn copy_back(&mut self, item: Item) {
        let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
        self.copy(item, facts, Duration::ZERO, None);
    }

    fn bury(&mut self, item: Item, rejection: Rejection, answer: Option<Answer<()>>) {
        let mut facts = item.facts.clone();
        facts.attempt = 1;
        let buried =
            self.inner.clone().bury(self.group.clone(), item.message.clone(), facts, item.attempt, rejection);
        self.copying.push(Box::pin(async move {
            let result = buried.await;
            (item, answer, result)
        }));
    }

    /// A copy is stored, so the original may go; or it is not, and the original goes back.
    async fn copied(
        &mut self,
        channel: &Channel,
        item: Item,
        answer: Option<Answer<()>>,
        result: Result<()>,
    ) {
        match result {
            Ok(()) => {
                self.tags.settle(item.tag);
                self.told.extend(answer);
                self.finish(&item);
            }
            Err(error) => {
                tracing::warn!(%error, group = %self.group, "a copy could not be stored; the message goes back to its group");
                if let Some(answer) = answer {
                    let _ = answer.send(Err(error.during("settle")));
                }
                if self.spec.keyed {
                    // Its place is kept; another try after a while.
                    self.wait(Instant::now() + Duration::from_secs(1), item, true);
                } else {
                    self.give_back(channel, &item).await;
                }
            }
        }
    }

    /// Back to the broker, counted as an attempt. Rejected, as a `nack` is not counted by newer brokers.
    async fn give_back(&mut self, channel: &Channel, item: &Item) {
        self.tags.told(item.tag);
        let back = channel.basic_reject(item.tag, BasicRejectOptions { requeue: true });
        let _ = command("give back", back).await;
    }

    /// Leases that have run out, waits that are over.
    async fn pass(&mut self, channel: &Channel) {
        let now = Instant::now();
        let late: Vec<_> = self
            .out
            .iter()
            .filter(|(_, out)| out.lease.is_some_and(|at| at <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            let Some(Out { item, .. }) = self.out.remove(&token) else { continue };
            if !self.spec.keyed {
                self.give_back(channel, &item).await;
            }
            // A keyed one goes back with all the others when this channel closes.
        }
        while let Some(entry) = self.waits.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (item, retry) = entry.remove();
            if retry { self.ready.push_back(item) } else { self.line_up(item) }
        }
    }

    /// Ends the consumer when the broker has nothing on its way to it. What the broker sends just before it hears of the
    /// end arrives after its answer, where the client no longer takes it, and would come again as one attempt more.
    /// Nothing is acknowledged meanwhile, so the broker sends no more than the credit allows.
    async fn stop_consuming(&mut self, channel: &Channel, name: &str, consumer: &mut Consumer) -> Result<()> {
        let end = Instant::now() + CALM;
        let queue = self.inner.names.group(&self.group);
        loop {
            while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                self.arrive(delivery).await;
            }
            if self.tags.unsettled() >= usize::from(self.prefetch()) || Instant::now() > end {
                break;
            }
            let ready = self.inner.control.counts(queue.clone()).await?.map_or(0, |counts| counts.ready);
            if ready == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        command("stop consuming", channel.basic_cancel(name.into(), BasicCancelOptions::default())).await
    }

    fn release_untaken(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        let waits = std::mem::take(&mut self.waits);
        for item in ready.into_iter().chain(waits.into_values().map(|(item, _)| item)) {
            self.copy_back(item);
        }
    }

    /// The group was moved: nothing of what we have counts any more.
    async fn give_up(&mut self) {
        while let Some((item, answer, result)) = self.copying.next().await {
            if result.is_ok() {
                self.tags.settle(item.tag);
                self.told.extend(answer);
            }
        }
        let out = std::mem::take(&mut self.out).into_values().map(|out| out.item);
        let waits = std::mem::take(&mut self.waits).into_values().map(|(item, _)| item);
        let ready = std::mem::take(&mut self.ready);
        for item in out.chain(waits).chain(ready).chain(self.lanes.drain()) {
            self.tags.settle(item.tag);
        }
        self.counted.clear();
    }

    fn may_leave(&self, exhausted: bool) -> bool {
        self.out.is_empty() && self.copying.is_empty() && (exhausted || self.spec.keyed)
    }

    /// Ends the channel. What a keyed member still has goes back to its place.
    async fn leave(&mut self, channel: &Channel) -> End {
        if self.spec.keyed {
            self.note_untaken();
            if let Err(error) = self.counted.store(&self.inner, &self.group).await {
                tracing::debug!(%error, "the attempts of a keyed group are not written down");
            }
        }
        let _ = command("close", channel.close(200, "left".into())).await;
        End::Over
    }

    /// The bus is closed: what nobody took is released, what is taken goes back as it is.
    async fn hand_back(&mut self, channel: &Channel, name: &str, consumer: &mut Consumer) -> End {
        self.stopping = true;
        if !self.spec.keyed {
            let _ = self.stop_consuming(channel, name, consumer).await;
            while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                self.arrive(delivery).await;
            }
            self.release_untaken();
            let end = Instant::now() + GOODBYE;
            while let Ok(Some((item, answer, result))) =
                tokio::time::timeout_at(end, self.copying.next()).await
            {
                self.copied(channel, item, answer, result).await;
            }
            let _ = self.flush(channel).await;
        }
        self.leave(channel).await
    }

    /// Writes acknowledgements, and tells who waits for them.
    async fn flush(&mut self, channel: &Channel) -> Result<()> {
        let mut acks = Vec::new();
        self.tags.flush(&mut acks);
        if !acks.is_empty() {
            let writes = acks.into_iter().map(|Ack { tag, multiple }| {
                channel.basic_ack(tag, lapin::options::BasicAckOptions { multiple })
            });
            if let Err(error) = command("acknowledge", futures_util::future::try_join_all(writes)).await {
                for answer in self.told.drain(..) {
                    let _ = answer.send(Err(lost().during("settle")));
                }
                return Err(error);
            }
        }
        for answer in self.told.drain(..) {
            let _ = answer.send(Ok(()));
        }
        Ok(())
    }

    fn holding(&self) -> Holding {
        let waiting = self.waits.values().filter(|(_, retry)| *retry).count();
        let early = self.waits.len() - waiting;
        let (ready, lanes) = (self.ready.len(), self.lanes.waiting());
        let oldest = (self.out.values().map(|out| &out.item))
            .chain(&self.ready)
            .chain(self.waits.values().map(|(item, _)| item))
            .chain(self.lanes.iter())
            .filter_map(|item| item.facts.published_at)
            .min();
        let hidden = if self.spec.keyed { 0 } else { ready };
        Holding {
            group: self.group.to_string(),
            live: !self.stopping && !self.feed.stopped().is_cancelled(),
            in_flight: (self.out.len() + self.copying.len() + hidden) as u64,
            held: (lanes + early + if self.spec.keyed { ready } else { 0 }) as u64,
            retrying: waiting as u64,
            oldest: oldest.map(Timestamp::as_millisecond),
            seen: self.seen,
        }
    }
}
