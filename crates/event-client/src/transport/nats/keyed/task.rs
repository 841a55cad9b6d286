//! The task of a keyed member: stands by, leads, leaves. All that it has belongs to it alone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use smol_str::SmolStr;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::hand::Hand;
use super::lead::{self, Looked, Outcome, Pending, Role, Taken};
use super::progress::Progress;
use super::reader::{self, Opened, REPLAYS, Wanted};
use super::{KeyedMember, Order};
use crate::confirm::Answer;
use crate::delivery::{Delivery, DeliveryInfo, Settle, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subscription::{Feed, Health};
use crate::transport::nats::connection::Connection;
use crate::transport::nats::dead::{self, Burial};
use crate::transport::nats::error::lost;
use crate::transport::nats::group::Record;
use crate::transport::nats::member::Source;
use crate::transport::nats::pull::{Pulls, Said};
use crate::transport::nats::state::Stored;
use crate::transport::nats::wire;

/// How often topics are looked for beside the news of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// Most messages that are looked at before others have a turn.
const BATCH: usize = 256;
/// How long a dead letter that could not be stored waits for its next try.
const BURY_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Task {
    member: Arc<KeyedMember>,
    connection: Arc<Connection>,
    feed: Feed,
    record: Record,
    orders: mpsc::UnboundedReceiver<Order>,
    messages: Subscriber,
    /// The group's record, told as it changes.
    changes: Subscriber,
    news: Subscriber,
    /// Nobody leads any more.
    led: Subscriber,
    pulls: Pulls,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    hand: Hand,

    role: Role,
    own: Progress,
    /// Each leadership has its own: what was begun under another one is void.
    term: u64,
    /// There is something to write.
    dirty: bool,
    /// Waits for the next writing.
    pending: Pending,
    /// Waits for the one under way, if there is one.
    writing: Option<Pending>,
    /// The last one that succeeded was asked for then.
    written: Instant,
    write_again: Instant,
    failures: u32,
    burying: HashSet<Token>,

    readers: Vec<Reader>,
    /// Topics whose open messages are here.
    loaded: HashSet<SmolStr>,
    /// Each set of readers has its own.
    reading: u64,
    opening: bool,
    /// Topics are to be opened, not before then.
    open_at: Option<Instant>,
    open_failures: u32,
    replays_due: bool,
    replaying: bool,
    /// Replays below it are gone from the server.
    replays_purged: u64,
    reloading: bool,
    reload_again: bool,

    stopping: bool,
    over: bool,
    troubled: bool,
}

struct Reader {
    topic: SmolStr,
    source: Option<(String, String)>,
    /// What the next message says of its turn.
    turn: u64,
}

type Found = (u64, Option<(Message, DeliveryInfo)>);

/// A step that was done beside the loop.
enum Done {
    Looked(Result<Looked>),
    Written { term: u64, asked: Instant, left: bool, result: Result<Outcome> },
    Buried { term: u64, token: Token, result: Result<()>, answer: Answer<()> },
    Opened { reading: u64, result: Result<Vec<Opened>> },
    Replays { reading: u64, room: usize, result: Result<Vec<Found>> },
    Reloaded(Result<Option<Stored<Record>>>),
}

impl Task {
    pub(super) async fn open(
        member: &Arc<KeyedMember>,
        feed: Feed,
        record: Record,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Result<Self> {
        let connection = member.connection.clone();
        let inbox = connection.client.new_inbox();
        let listen = async |subject: String| {
            connection.client.subscribe(subject).await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
            })
        };
        let own = Progress {
            connection: connection.id.clone(),
            member: connection.next_id().to_string().into(),
            ..Progress::default()
        };
        let now = Instant::now();
        Ok(Self {
            messages: listen(format!("{inbox}.>")).await?,
            changes: listen(connection.group_subject(&member.group)).await?,
            news: listen(connection.names.news()).await?,
            led: listen(connection.names.led(&member.group)).await?,
            pulls: Pulls::new(connection.courier.clone(), inbox),
            member: member.clone(),
            feed,
            record,
            orders,
            jobs: FuturesUnordered::new(),
            hand: Hand::default(),
            role: Role::StandBy { look: now, looking: false, seen: None },
            own,
            term: 0,
            dirty: false,
            pending: Pending::default(),
            writing: None,
            written: now,
            write_again: now,
            failures: 0,
            burying: HashSet::new(),
            readers: Vec::new(),
            loaded: HashSet::new(),
            reading: 0,
            opening: false,
            open_at: None,
            open_failures: 0,
            replays_due: false,
            replaying: false,
            replays_purged: 0,
            reloading: false,
            reload_again: false,
            stopping: false,
            over: false,
            troubled: false,
            connection,
        })
    }

    pub(super) async fn run(mut self) {
        let mut closing = self.member.closing.subscribe();
        let mut connects = self.connection.connects.clone();
        connects.mark_unchanged();
        let (stopped, gone) = (self.feed.stopped().clone(), self.feed.gone().clone());
        let closed = self.connection.closed.clone();
        let settle: Arc<dyn Settle> = self.member.clone();
        let mut rescan = Instant::now() + RESCAN;
        self.feed.report(Health::Live);
        loop {
            if stopped.is_cancelled() || gone.is_cancelled() || *closing.borrow() {
                self.stop(*closing.borrow());
            }
            if self.over || closed.is_cancelled() || self.is_done() {
                break;
            }
            let next = [Some(rescan), self.step()].into_iter().flatten().min().expect("one at least");
            let stopping = self.stopping;
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => self.hear(message),
                    None => break,
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => break,
                },
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done, &settle),
                slot = self.feed.slot(), if self.leads() && self.hand.has_ready() && !stopping => {
                    self.claim(Some(slot));
                }
                changed = self.changes.next() => if changed.is_some() { self.reload() } else { break },
                news = self.news.next() => if news.is_some() {
                    self.replays_due = true;
                    self.open_soon(Duration::ZERO);
                } else {
                    break
                },
                told = self.led.next() => if told.is_some() { self.look_soon() } else { break },
                _ = connects.changed() => {
                    // What was on its way is lost, and the server may be another one than before.
                    self.read_anew(Duration::ZERO);
                    self.write_again = Instant::now();
                    self.look_soon();
                    self.reload();
                }
                () = tokio::time::sleep_until(next) => {}
                _ = closing.changed() => {}
                () = stopped.cancelled(), if !stopping => {}
                () = gone.cancelled(), if !stopping => {}
                () = closed.cancelled() => {}
            }
            if Instant::now() >= rescan {
                self.reload();
                self.replays_due = true;
                rescan = Instant::now() + RESCAN;
            }
            tokio::task::coop::consume_budget().await;
        }
        self.give_up();
        self.feed.report(Health::Stopped);
        let member = self.member.clone();
        drop(self);
        member.live.store(false, Ordering::Release);
        member.ended.send_replace(true);
    }

    fn leads(&self) -> bool {
        matches!(self.role, Role::Leads { .. })
    }

    /// Does what can be done now; when there will be more, at the latest.
    fn step(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Role::StandBy { look, looking, seen } = &mut self.role {
            if *looking || self.stopping {
                return None;
            }
            if *look > now {
                return Some(*look);
            }
            *looking = true;
            let step = lead::look(
                self.connection.clone(),
                self.member.group.clone(),
                self.record.lease(),
                *seen,
                self.own.clone(),
            );
            self.jobs.push(step.map(Done::Looked).boxed());
            return None;
        }
        let due = self.hand.wake(now);
        self.claim(None);
        let write = self.write(now);
        let (open, read) = if self.stopping { (None, None) } else { (self.open_topics(now), self.pull()) };
        // Who is gone and leads no longer by the clock has nothing left to do.
        let end = self.feed.gone().is_cancelled().then(|| self.member.until());
        [due, write, open, read, end].into_iter().flatten().min()
    }

    /// Messages that may go are claimed: they go when that is written.
    fn claim(&mut self, mut slot: Option<OwnedSemaphorePermit>) {
        while !self.stopping && self.hand.has_ready() {
            let Some(slot) = slot.take().or_else(|| self.feed.try_slot()) else { return };
            // What expired is settled by being passed over.
            self.dirty = true;
            let Some(token) = self.hand.claim() else { return };
            self.pending.claims.push((token, slot));
        }
    }

    fn obey(&mut self, order: Order) {
        let mut next = Some(order);
        while let Some(order) = next {
            match order {
                Order::Settle(token, settlement, answer) => self.settle(token, settlement, answer),
                Order::Renew(token, answer) => match self.hand.out(token) {
                    Some(_) => {
                        self.dirty = true;
                        self.pending.answers.push((Instant::now(), answer));
                    }
                    None => drop(answer.send(Err(lost()))),
                },
            }
            next = self.orders.try_recv().ok();
        }
    }

    fn settle(&mut self, token: Token, settlement: Settlement, answer: Answer<()>) {
        let first_ms = self.hand.first_attempt(token);
        let Some(entry) = self.hand.out(token) else {
            let _ = answer.send(Err(lost()));
            return;
        };
        match settlement {
            Settlement::Reject(rejection) => {
                let stream = self.connection.names.stream(&entry.topic);
                let burial = Burial {
                    message: entry.message.clone(),
                    info: entry.info.clone(),
                    first_ms,
                    // Whoever does it a second time, after a take-over, says the same.
                    id: format!(
                        "dlq/{stream}/{}@{}/{}",
                        self.member.group, self.record.epoch, entry.sequence
                    ),
                };
                let (connection, group, term) =
                    (self.connection.clone(), self.member.group.clone(), self.term);
                self.burying.insert(token);
                self.jobs.push(
                    async move {
                        let result = dead::bury(&connection, &group, &burial, rejection).await;
                        Done::Buried { term, token, result, answer }
                    }
                    .boxed(),
                );
                return;
            }
            Settlement::Ack => self.hand.settle(token),
            Settlement::Retry { after, .. } => self.hand.retry(token, after),
            Settlement::Release => self.hand.release(token),
        }
        self.put_down(answer);
    }

    /// A delivery is no longer with its consumer; its answer waits for the writing.
    fn put_down(&mut self, answer: Answer<()>) {
        self.member.out.fetch_sub(1, Ordering::AcqRel);
        self.dirty = true;
        self.pending.answers.push((Instant::now(), answer));
        if self.stopping {
            self.hand.let_go();
        }
    }

    fn done(&mut self, done: Done, settle: &Arc<dyn Settle>) {
        match done {
            Done::Looked(result) => self.looked(result),
            Done::Written { term, asked, left, result } if term == self.term => {
                self.wrote(asked, left, result, settle);
            }
            Done::Written { .. } => {}
            Done::Buried { term, token, result, answer } => {
                let ours = term == self.term && self.burying.remove(&token);
                match result {
                    _ if !ours => drop(answer.send(Err(lost()))),
                    Ok(()) => {
                        self.hand.settle(token);
                        self.put_down(answer);
                    }
                    Err(error) => {
                        let _ = answer.send(Err(error.during("settle")));
                        self.hand.retry(token, BURY_AGAIN);
                        self.put_down(crate::confirm::Confirm::channel().0);
                    }
                }
            }
            Done::Opened { reading, result } if reading == self.reading => self.opened(result),
            Done::Opened { .. } => {}
            Done::Replays { reading, room, result } if reading == self.reading => {
                self.replaying = false;
                match result {
                    Ok(found) => {
                        self.replays_due |= found.len() == room;
                        self.take_in(&SmolStr::new_static(REPLAYS), found);
                    }
                    Err(error) => self.trouble(&error.to_string()),
                }
            }
            Done::Replays { .. } => {}
            Done::Reloaded(result) => {
                self.reloading = false;
                match result {
                    Ok(Some(stored)) => self.change(stored.value),
                    Ok(None) => self.over = true,
                    Err(error) => self.trouble(&error.to_string()),
                }
                if std::mem::take(&mut self.reload_again) {
                    self.reload();
                }
            }
        }
    }

    fn looked(&mut self, result: Result<Looked>) {
        let pause = (self.record.lease() / 4).min(Duration::from_secs(2));
        let Role::StandBy { look, looking, seen } = &mut self.role else { return };
        *looking = false;
        *look = Instant::now() + pause;
        match result {
            Ok(Looked::Led(now)) => {
                *seen = Some(now);
                self.well();
            }
            Ok(Looked::Raced) => *look = Instant::now(),
            Ok(Looked::Taken(taken)) => self.lead(*taken),
            Ok(Looked::Gone) => self.over = true,
            Err(error) => self.trouble(&error.to_string()),
        }
    }

    fn look_soon(&mut self) {
        if let Role::StandBy { look, .. } = &mut self.role {
            *look = Instant::now();
        }
    }

    fn lead(&mut self, taken: Taken) {
        tracing::debug!(group = %self.member.group, sequence = taken.sequence, "leads");
        self.term += 1;
        self.role = Role::Leads { sequence: taken.sequence };
        self.record = taken.record;
        self.hand.clear();
        self.hand.marks = taken.progress.topics;
        self.loaded.clear();
        self.dirty = false;
        self.wrote_at(taken.asked);
        self.read_anew(Duration::ZERO);
    }

    fn wrote_at(&mut self, asked: Instant) {
        let lease = self.record.lease();
        self.written = asked;
        self.failures = 0;
        self.write_again = Instant::now();
        // A little less than who stands by waits.
        self.member.set_until(asked + lease - lease / 20);
    }

    /// Writes what there is to write, or that we are still here; when to look again.
    fn write(&mut self, now: Instant) -> Option<Instant> {
        let Role::Leads { sequence } = self.role else { return None };
        if self.writing.is_some() {
            return None;
        }
        let lease = self.record.lease();
        let idle = self.stopping && self.hand.all_out().is_empty() && self.burying.is_empty();
        // Nobody renews for who is gone.
        let beat = (!self.feed.gone().is_cancelled()).then(|| self.written + lease / 3);
        let wanted = self.dirty || idle || !self.pending.is_empty();
        let at = if wanted { Some(self.write_again) } else { beat.map(|beat| beat.max(self.write_again)) };
        if at.is_none_or(|at| at > now) {
            return at;
        }
        self.own.beat += 1;
        let progress = Progress {
            left: idle,
            epoch: self.record.epoch,
            topics: self.hand.marks.clone(),
            ..self.own.clone()
        };
        self.dirty = false;
        self.writing = Some(std::mem::take(&mut self.pending));
        let within = self.connection.config.request_timeout.min((lease / 3).max(Duration::from_millis(500)));
        let (term, left) = (self.term, idle);
        let step =
            lead::write(self.connection.clone(), self.member.group.clone(), progress, sequence, within);
        self.jobs.push(step.map(move |result| Done::Written { term, asked: now, left, result }).boxed());
        None
    }

    fn wrote(&mut self, asked: Instant, left: bool, result: Result<Outcome>, settle: &Arc<dyn Settle>) {
        let written = self.writing.take().unwrap_or_default();
        match result {
            Ok(Outcome::Stored(sequence)) => {
                self.role = Role::Leads { sequence };
                self.wrote_at(asked);
                for (_, answer) in written.answers {
                    let _ = answer.send(Ok(()));
                }
                for (token, slot) in written.claims {
                    if let Some((message, info)) = self.hand.hand_out(token) {
                        self.member.out.fetch_add(1, Ordering::AcqRel);
                        self.feed.push(Delivery::new(message, info, settle.clone(), token, slot));
                    }
                }
                self.purge_replays();
                if left {
                    self.connection.tell_led(&self.member.group);
                    self.over = true;
                }
                if self.open_at.is_none() && !self.opening {
                    self.well();
                }
            }
            Ok(Outcome::Ours(sequence)) => {
                self.role = Role::Leads { sequence };
                self.pending.put_back(written);
                self.dirty = true;
            }
            Ok(Outcome::Lost) => {
                tracing::info!(group = %self.member.group, "another member leads this group now");
                self.pending.put_back(written);
                self.follow();
            }
            Err(error) => {
                self.pending.put_back(written);
                self.dirty = true;
                self.failures = (self.failures + 1).min(5);
                self.write_again = Instant::now() + Duration::from_millis(25 << self.failures);
                self.pending.expire(self.connection.config.request_timeout, &error);
                self.trouble(&error.to_string());
            }
        }
    }

    /// Another one leads: nothing here is ours any more.
    fn follow(&mut self) {
        self.term += 1;
        self.writing = None;
        self.void();
        self.read_anew(Duration::ZERO);
        self.open_at = None;
        let look = Instant::now() + self.record.lease() / 4;
        self.role = Role::StandBy { look, looking: false, seen: None };
    }

    /// Nothing here can be settled any more.
    fn void(&mut self) {
        self.pending.give_up();
        if let Some(writing) = &mut self.writing {
            writing.give_up();
        }
        self.burying.clear();
        self.hand.clear();
        self.loaded.clear();
        self.member.out.store(0, Ordering::Release);
        self.feed.take_back();
    }

    /// What waits for a writing when nobody will write any more.
    fn give_up(&mut self) {
        self.pending.give_up();
        if let Some(mut writing) = self.writing.take() {
            writing.give_up();
        }
        self.close_readers();
    }

    /// Hands out nothing any more, and hands back what nobody has begun; all of it when the connection closes.
    fn stop(&mut self, closing: bool) {
        if !std::mem::replace(&mut self.stopping, true) {
            self.member.live.store(false, Ordering::Release);
            let writing = self.writing.iter_mut();
            for pending in [&mut self.pending].into_iter().chain(writing) {
                for (token, _) in pending.claims.drain(..) {
                    self.hand.release(token);
                }
            }
            self.hand.let_go();
            self.close_readers();
            self.dirty = true;
        }
        if closing {
            for token in self.hand.all_out() {
                if !self.burying.contains(&token) {
                    self.hand.release(token);
                    self.member.out.fetch_sub(1, Ordering::AcqRel);
                    self.dirty = true;
                }
            }
            self.hand.let_go();
        }
    }

    /// Whether a stopping member has nothing left to do.
    fn is_done(&self) -> bool {
        self.stopping
            && match &self.role {
                Role::StandBy { looking, .. } => !looking,
                Role::Leads { .. } => {
                    self.feed.gone().is_cancelled() && Instant::now() >= self.member.until()
                }
            }
    }

    fn reload(&mut self) {
        if std::mem::replace(&mut self.reloading, true) {
            self.reload_again = true;
            return;
        }
        let (connection, group) = (self.connection.clone(), self.member.group.clone());
        self.jobs.push(async move { Done::Reloaded(connection.group(&group).await) }.boxed());
    }

    /// The group's record is read again.
    fn change(&mut self, record: Record) {
        let (moved, other) = (record.epoch != self.record.epoch, record.filters != self.record.filters);
        self.record = record;
        if !self.leads() {
            return;
        }
        if moved {
            // Everything here was given up.
            self.void();
            self.dirty = true;
        }
        if moved || other {
            self.read_anew(Duration::ZERO);
        } else {
            self.open_soon(Duration::ZERO);
        }
    }

    fn close_readers(&mut self) {
        self.reading += 1;
        self.opening = false;
        self.replaying = false;
        self.pulls.clear();
        for (stream, consumer) in self.readers.drain(..).filter_map(|reader| reader.source) {
            let connection = self.connection.clone();
            self.connection.tasks.spawn(async move {
                let _ = connection.delete_consumer(&stream, &consumer).await;
            });
        }
    }

    /// Reads everything again from where the group is, after a while.
    fn read_anew(&mut self, after: Duration) {
        self.close_readers();
        self.open_at = None;
        self.open_soon(after);
    }

    fn open_soon(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.open_at = Some(self.open_at.map_or(at, |open| open.min(at)));
    }

    /// Opens topics that are not read yet.
    fn open_topics(&mut self, now: Instant) -> Option<Instant> {
        if self.opening {
            return None;
        }
        if self.open_at? > now {
            return self.open_at;
        }
        self.open_at = None;
        self.opening = true;
        let known = self.readers.iter().map(|reader| reader.topic.clone()).collect();
        let wanted: BTreeMap<SmolStr, Wanted> = self
            .hand
            .marks
            .iter()
            .map(|(topic, mark)| {
                let missing = if self.loaded.contains(topic) {
                    Vec::new()
                } else {
                    mark.open.keys().copied().collect()
                };
                (topic.clone(), Wanted { next: mark.next, missing })
            })
            .collect();
        let reading = self.reading;
        let step = reader::open(self.connection.clone(), self.record.clone(), wanted, known);
        self.jobs.push(step.map(move |result| Done::Opened { reading, result }).boxed());
        None
    }

    fn opened(&mut self, result: Result<Vec<Opened>>) {
        self.opening = false;
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => {
                self.trouble(&error.to_string());
                return self.open_later();
            }
        };
        self.open_failures = 0;
        for topic in opened {
            self.loaded.insert(topic.topic.clone());
            self.take_in(&topic.topic, topic.open);
            let mark = self.hand.marks.entry(topic.topic.clone()).or_default();
            mark.next = mark.next.max(topic.next);
            self.replays_due |= topic.consumer.is_none();
            let source = topic.consumer.map(|consumer| {
                self.pulls.add(Source {
                    stream: topic.stream.clone(),
                    consumer: consumer.clone(),
                    copies: false,
                });
                (topic.stream, consumer)
            });
            self.readers.push(Reader { topic: topic.topic, source, turn: 1 });
        }
        self.well();
    }

    fn open_later(&mut self) {
        self.open_failures = (self.open_failures + 1).min(6);
        let most = 25_u64 << self.open_failures;
        self.read_anew(Duration::from_millis(fastrand::u64(most / 2..=most)));
    }

    fn take_in(&mut self, topic: &SmolStr, found: Vec<Found>) {
        for (sequence, message) in found {
            match message {
                Some((message, info)) => self.hand.accept(topic, sequence, message, info),
                None => {
                    tracing::warn!(
                        group = %self.member.group, topic = %topic, position = sequence,
                        "a message was passed over: its stream no longer has it, or it is none of this library's"
                    );
                    self.hand.pass_over(topic, sequence);
                    self.dirty = true;
                }
            }
        }
    }

    /// Asks for what there is room for; when to look again at the latest.
    fn pull(&mut self) -> Option<Instant> {
        let room = self.hand.room();
        if room > 0 && self.replays_due && !self.replaying && self.loaded.contains(REPLAYS) {
            self.replays_due = false;
            self.replaying = true;
            let next = self.hand.marks.get(REPLAYS).map_or(0, |mark| mark.next);
            let room = room.min(64);
            let reading = self.reading;
            let step = reader::replays(self.connection.clone(), self.member.group.clone(), next, room);
            self.jobs.push(step.map(move |result| Done::Replays { reading, room, result }).boxed());
        }
        let (wake, silent) = self.pulls.top_up(room);
        if silent {
            self.trouble("a pull was not answered");
            self.open_later();
        }
        wake
    }

    fn hear(&mut self, message: async_nats::Message) {
        let mut next = Some(message);
        for _ in 0..BATCH {
            let Some(message) = next else { return };
            match message.status {
                Some(status) => {
                    if let Said::Trouble(text) = self.pulls.status(&message, status) {
                        self.trouble(&text);
                        self.open_later();
                    }
                }
                None => self.read(message),
            }
            next = self.messages.next().now_or_never().flatten();
        }
        if let Some(message) = next {
            self.read(message);
        }
    }

    fn read(&mut self, message: async_nats::Message) {
        let Some(info) = message.reply.as_ref().and_then(|reply| wire::AckInfo::read(reply)) else { return };
        if self.pulls.received(info.stream, info.consumer).is_none() {
            return; // of a consumer that was given up
        }
        let reader = self.readers.iter_mut().find(|reader| {
            reader
                .source
                .as_ref()
                .is_some_and(|(stream, name)| stream == info.stream && name == info.consumer)
        });
        let Some(reader) = reader else { return };
        if info.turn != reader.turn {
            tracing::debug!(group = %self.member.group, turn = info.turn, "messages were lost on their way");
            return self.read_anew(Duration::ZERO);
        }
        reader.turn += 1;
        let topic = reader.topic.clone();
        if self.hand.marks.get(&topic).is_some_and(|mark| info.sequence < mark.next) {
            return;
        }
        let decoded = wire::subject(&self.connection.names, &message.subject).map(|subject| {
            wire::message(message.headers.as_ref(), message.payload.clone(), subject, || info.id())
        });
        match decoded {
            Some(decoded) if self.record.wants(&decoded.subject, info.sequence) => {
                let about = reader::about(info.sequence, info.published_at());
                self.hand.accept(&topic, info.sequence, decoded, about);
            }
            decoded => {
                if decoded.is_none() {
                    crate::transport::nats::fetch::foreign(
                        &self.member.group,
                        &message.subject,
                        info.sequence,
                    );
                }
                self.hand.pass_over(&topic, info.sequence);
            }
        }
    }

    /// What was replayed and is settled goes from the server.
    fn purge_replays(&mut self) {
        let floor = self.hand.marks.get(REPLAYS).map_or(0, super::progress::Mark::floor);
        if floor > self.replays_purged.max(1) && !self.dirty {
            self.replays_purged = floor;
            let (connection, group) = (self.connection.clone(), self.member.group.clone());
            self.connection.tasks.spawn(async move {
                let (work, subject) = (connection.names.work(), connection.names.replayed(&group));
                let _ = connection.purge_below(&work, &subject, floor).await;
            });
        }
    }

    fn trouble(&mut self, what: &str) {
        self.feed.report(Health::Rebuilding(what.to_owned()));
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::warn!(group = %self.member.group, error = what, "fetching is interrupted; it is tried again");
        }
    }

    fn well(&mut self) {
        if std::mem::replace(&mut self.troubled, false) {
            tracing::info!(group = %self.member.group, "fetching goes on");
        }
        self.feed.report(Health::Live);
    }
}
