//! The task of a keyed member: it stands by, leads the group, and leaves. All its state belongs to this task alone.

use std::collections::{BTreeMap, HashSet, VecDeque};
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

use super::backlog::Backlog;
use super::checkpoint::{Again, Mark, Progress};
use super::leadership::{self, Claimed, Known, Pending, Role, Taken, Written};
use super::open::{self, Opened, REPLAYS, Wanted};
use super::{Command, KeyedMember};
use crate::confirm::Answer;
use crate::delivery::{Delivery, DeliveryInfo, Settle, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subscription::{Feed, Health};
use crate::transport::nats::codec;
use crate::transport::nats::connection::Connection;
use crate::transport::nats::dead_letters::{self, DeadLettering};
use crate::transport::nats::error::lost;
use crate::transport::nats::group::{Record, Standing};
use crate::transport::nats::member::Source;
use crate::transport::nats::poison::Disconnects;
use crate::transport::nats::pull::{PullStatus, Pulls};
use crate::transport::outage::Outage;

mod reading;
mod settling;
mod writing;

/// Interval of scans for topics, in addition to the notifications of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// Largest number of messages processed before the loop checks its other inputs.
const BATCH: usize = 256;
/// Delay before a dead letter that could not be stored is tried again.
const BURY_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Leader {
    member: Arc<KeyedMember>,
    connection: Arc<Connection>,
    feed: Feed,
    record: Record,
    commands: mpsc::UnboundedReceiver<Command>,
    messages: Subscriber,
    /// Receives the group's record when it changes.
    changes: Subscriber,
    news: Subscriber,
    /// Receives a notification when the group has lost its leader.
    led: Subscriber,
    pulls: Pulls,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    backlog: Backlog,

    role: Role,
    own: Progress,
    /// Number of the leadership. A step that was started under an earlier one is void.
    term: u64,
    /// There are changes to write.
    dirty: bool,
    /// Answers and claims that wait for the next write.
    pending: Pending,
    /// Answers and claims of the write in progress, if there is one.
    writing: Option<Pending>,
    /// Start time of the last successful write.
    written: Instant,
    write_again: Instant,
    failures: u32,
    dead_lettering: HashSet<Token>,

    readers: Vec<Reader>,
    /// Ranges that are read a second time because filters changed.
    again: BTreeMap<SmolStr, Again>,
    /// Messages that the last read filters do not match, and all messages received after them.
    doubtful: VecDeque<async_nats::Message>,
    /// Number of `doubtful` messages received before the running read of the group's record began.
    covered: usize,
    /// The group's marks when this member last led it.
    marks: BTreeMap<SmolStr, Mark>,
    /// Topics whose open messages have been loaded.
    loaded: HashSet<SmolStr>,
    /// Number of the set of readers. A step that was started for an earlier one is void.
    reading: u64,
    opening: bool,
    disconnects: Disconnects,
    /// The connection may have broken because of a message that cannot be read.
    care: bool,
    /// Time at which topics are to be opened.
    open_at: Option<Instant>,
    open_failures: u32,
    replays_due: bool,
    replaying: bool,
    /// Replays below this sequence are deleted from the server.
    replays_purged: u64,
    reloading: bool,
    reload_again: bool,

    stopping: bool,
    over: bool,
    outage: Outage,
}

struct Reader {
    topic: SmolStr,
    source: Option<(String, String)>,
    /// Consumer sequence that the next message must have.
    turn: u64,
}

type Found = (u64, Option<(Message, DeliveryInfo)>);

/// Result of a step that ran beside the loop.
enum Done {
    Claimed(Result<Claimed>),
    Written { term: u64, asked: Instant, left: bool, result: Result<Written> },
    Buried { term: u64, token: Token, result: Result<()>, answer: Answer<()> },
    Opened { reading: u64, result: Result<Vec<Opened>> },
    Replays { reading: u64, room: usize, result: Result<Vec<Found>> },
    Reloaded(Result<Standing>),
}

impl Leader {
    pub(super) async fn open(
        member: &Arc<KeyedMember>,
        feed: Feed,
        record: Record,
        commands: mpsc::UnboundedReceiver<Command>,
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
            pulls: Pulls::new(connection.outbound.clone(), inbox),
            member: member.clone(),
            feed,
            record,
            commands,
            jobs: FuturesUnordered::new(),
            backlog: Backlog::default(),
            role: Role::StandBy { look: now, looking: false, seen: None },
            own,
            term: 0,
            dirty: false,
            pending: Pending::default(),
            writing: None,
            written: now,
            write_again: now,
            failures: 0,
            dead_lettering: HashSet::new(),
            readers: Vec::new(),
            again: BTreeMap::new(),
            doubtful: VecDeque::new(),
            covered: 0,
            marks: BTreeMap::new(),
            loaded: HashSet::new(),
            reading: 0,
            opening: false,
            disconnects: Disconnects::new(&connection),
            care: false,
            open_at: None,
            open_failures: 0,
            replays_due: false,
            replaying: false,
            replays_purged: 0,
            reloading: false,
            reload_again: false,
            stopping: false,
            over: false,
            outage: Outage::default(),
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
                    Some(message) => self.on_message(message),
                    None => break,
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.on_done(done, &settle),
                slot = self.feed.slot(), if self.leads() && self.backlog.has_ready() && !stopping => {
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
                    // Messages in transit are lost, and the server may be a different one.
                    self.care |= self.disconnects.are_odd(&self.connection, self.record.lease());
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

    /// Does all work that is due. Returns the latest time at which to run again.
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
            let step = leadership::look(
                self.connection.clone(),
                self.member.group.clone(),
                self.record.lease(),
                *seen,
                Known { own: self.own.clone(), record: self.record.clone(), marks: self.marks.clone() },
            );
            self.jobs.push(step.map(Done::Claimed).boxed());
            return None;
        }
        let due = self.backlog.wake(now);
        self.claim(None);
        let write = self.write(now);
        let (open, read) = if self.stopping { (None, None) } else { (self.open_topics(now), self.pull()) };
        // After its subscription is dropped, a member has nothing left to do once its leadership has run out.
        let end = self.feed.gone().is_cancelled().then(|| self.member.until());
        [due, write, open, read, end].into_iter().flatten().min()
    }

    fn on_done(&mut self, done: Done, settle: &Arc<dyn Settle>) {
        match done {
            Done::Claimed(result) => self.on_record(result),
            Done::Written { term, asked, left, result } if term == self.term => {
                self.wrote(asked, left, result, settle);
            }
            Done::Written { .. } => {}
            Done::Buried { term, token, result, answer } => {
                let ours = term == self.term && self.dead_lettering.remove(&token);
                match result {
                    _ if !ours => drop(answer.send(Err(lost()))),
                    Ok(()) => {
                        self.backlog.settle(token);
                        self.put_down(answer);
                    }
                    Err(error) => {
                        let _ = answer.send(Err(error.during("settle")));
                        self.backlog.retry(token, BURY_AGAIN);
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
                    Err(error) => self.begin_outage(&error.to_string()),
                }
            }
            Done::Replays { .. } => {}
            Done::Reloaded(result) => {
                self.reloading = false;
                match result {
                    Ok(Standing::There(record)) => {
                        self.change(record);
                        self.judge();
                    }
                    Ok(Standing::Deleted) => self.over = true,
                    Err(error) => {
                        self.begin_outage(&error.to_string());
                        if !self.doubtful.is_empty() {
                            self.open_later();
                        }
                    }
                }
                if std::mem::take(&mut self.reload_again) {
                    self.reload();
                }
            }
        }
    }

    /// Stops delivering, and releases messages that no consumer has taken; all messages when the connection closes.
    fn stop(&mut self, closing: bool) {
        if !std::mem::replace(&mut self.stopping, true) {
            self.member.live.store(false, Ordering::Release);
            let writing = self.writing.iter_mut();
            for pending in [&mut self.pending].into_iter().chain(writing) {
                for (token, _) in pending.claims.drain(..) {
                    self.backlog.release(token);
                }
            }
            self.backlog.let_go();
            self.close_readers();
            self.dirty = true;
        }
        if closing {
            for token in self.backlog.all_out() {
                if !self.dead_lettering.contains(&token) {
                    self.backlog.release(token);
                    self.member.out.fetch_sub(1, Ordering::AcqRel);
                    self.dirty = true;
                }
            }
            self.backlog.let_go();
        }
    }

    /// Returns whether a stopping member has nothing left to do.
    fn is_done(&self) -> bool {
        self.stopping
            && match &self.role {
                Role::StandBy { looking, .. } => !looking,
                Role::Leads { .. } => {
                    self.feed.gone().is_cancelled() && Instant::now() >= self.member.until()
                }
            }
    }

    fn begin_outage(&mut self, what: &str) {
        self.outage.begins_for(&self.member.group, &self.feed, what);
    }

    fn end_outage(&mut self) {
        self.outage.ends_for(&self.member.group, &self.feed);
    }
}
