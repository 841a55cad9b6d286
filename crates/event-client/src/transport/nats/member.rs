//! A live subscription of a group: the messages that it leases, the end of each lease, and its recent settlements.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use slab::Slab;
use smol_str::SmolStr;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::codec::AckInfo;
use super::connection::Connection;
use super::double_ack::AckLog;
use super::group::{ConsumerInfo, StartAt};
use super::presence::{MemberStatus, Participant};
use crate::bounds;
use crate::delivery::{DeliveryInfo, Token};
use crate::message::Message;
use crate::subject::Group;

/// One subscription of a group.
pub(super) struct Member {
    pub(super) me: Weak<Member>,
    pub(super) connection: Arc<Connection>,
    pub(super) group: Group,
    lease_ms: AtomicU64,
    in_flight: Mutex<InFlight>,
    /// Sends commands to the fetching task.
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Whether the member takes part in the group's work; otherwise it reports no status.
    pub(super) live: AtomicBool,
    /// Number of settlements in progress that take several steps.
    pub(super) busy: AtomicU64,
    pub(super) idle: Notify,
    /// Set to `true` when the member has to release everything.
    pub(super) closing: watch::Sender<bool>,
    /// Set to `true` when the fetching task has ended.
    pub(super) ended: watch::Sender<bool>,
}

/// A command to the fetching task.
pub(super) enum Command {
    /// Check that the group's record, streams and consumers still exist.
    Verify,
}

/// A consumer of a stream that a member fetches from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) stream: SmolStr,
    pub(super) consumer: String,
    /// Its messages are copies; the headers identify the originals.
    pub(super) copies: bool,
    /// Acknowledgements sent to it.
    pub(super) ack_log: AckLog,
    /// The highest sequence that it has delivered.
    highest: AtomicU64,
    /// Its creation time, which distinguishes it from another consumer of the same name.
    created: Option<Timestamp>,
    /// The last settled sequence when the consumer's information was last read.
    floor: AtomicU64,
}

impl Source {
    pub(super) fn new(stream: String, consumer: String, copies: bool) -> Self {
        Self {
            stream: stream.into(),
            consumer,
            copies,
            ack_log: AckLog::default(),
            highest: AtomicU64::default(),
            created: None,
            floor: AtomicU64::default(),
        }
    }

    /// Builds the source of a group's consumer from the server's information.
    pub(super) fn of(stream: String, consumer: String, copies: bool, info: &ConsumerInfo) -> Self {
        let floor = AtomicU64::new(info.ack_floor.stream_seq);
        Self { created: info.created, floor, ..Self::new(stream, consumer, copies) }
    }

    /// Returns whether `info` describes the same consumer, and if so takes over its ack floor.
    pub(super) fn is_still(&self, info: &ConsumerInfo) -> bool {
        let same = self.created == info.created;
        if same {
            self.floor.fetch_max(info.ack_floor.stream_seq, Ordering::Relaxed);
        }
        same
    }

    /// Returns the start of another consumer in its place, in a stream created at `stream_created`. Returns `None`
    /// when that is another stream than this consumer's.
    pub(super) fn successor(&self, stream_created: Option<Timestamp>) -> Option<StartAt> {
        let same_stream =
            stream_created.zip(self.created).is_some_and(|(stream, consumer)| stream <= consumer);
        same_stream.then(|| StartAt::Sequence(self.floor.load(Ordering::Relaxed) + 1))
    }
}

/// The messages in flight at a member.
#[derive(Default)]
pub(super) struct InFlight {
    entries: Slab<LeasedMessage>,
    generation: u32,
    /// The last finally settled messages, by source, sequence and time of publication.
    settled: VecDeque<(usize, u64, i64)>,
}

/// State of a received message according to the messages in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The server has not delivered it before.
    Never,
    /// It may be in flight at this member.
    Perhaps,
    /// It was finally settled.
    Settled,
}

/// Number of settled messages that are remembered.
const REMEMBERED: usize = 1024;

/// A message that this member leases.
pub(super) struct LeasedMessage {
    generation: u32,
    pub(super) source: Arc<Source>,
    pub(super) sequence: u64,
    /// Time of its storage in Unix nanoseconds: a stream that is created again has other messages at the same
    /// sequences.
    pub(super) time: i64,
    /// Subject that its settlement is sent to.
    pub(super) ack: NatsSubject,
    pub(super) delivered: u64,
    pub(super) message: Arc<Message>,
    pub(super) info: DeliveryInfo,
    pub(super) first_ms: i64,
    /// Time until which the lease is certain.
    pub(super) lease_until: Instant,
    /// Delivered to the consumer, or in its queue.
    pub(super) out: bool,
    /// Its attempts are recorded in the state stream.
    pub(super) recorded: bool,
    /// It may already be in flight at this member.
    pub(super) again: bool,
}

impl Member {
    pub(super) fn new(
        connection: Arc<Connection>,
        group: Group,
        lease: Duration,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            connection,
            group,
            lease_ms: AtomicU64::new(bounds::millis(lease)),
            in_flight: Mutex::default(),
            commands,
            live: AtomicBool::new(true),
            busy: AtomicU64::new(0),
            idle: Notify::new(),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        })
    }

    pub(super) fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.load(Ordering::Relaxed))
    }

    pub(super) fn set_lease(&self, lease: Duration) {
        self.lease_ms.store(bounds::millis(lease), Ordering::Relaxed);
    }

    /// Returns how long a lease is certain after it was requested: slightly less than the server's lease.
    pub(super) fn certain(&self) -> Duration {
        let lease = self.lease();
        lease - lease / 20
    }

    /// Waits until no settlement with several steps is in progress.
    pub(super) async fn until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Participant for Member {
    fn status(&self) -> Option<MemberStatus> {
        let live = self.live.load(Ordering::Acquire);
        live.then(|| MemberStatus { group: self.group.as_str().into(), out: self.in_flight().out() })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.send_replace(true);
            let mut ended = self.ended.subscribe();
            let _ = tokio::time::timeout(Duration::from_secs(5), ended.wait_for(|ended| *ended)).await;
            let _ = tokio::time::timeout(Duration::from_secs(5), self.until_idle()).await;
        })
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("group", &self.group).finish_non_exhaustive()
    }
}

impl InFlight {
    /// Adds a message.
    pub(super) fn insert(&mut self, mut entry: LeasedMessage) -> Token {
        self.generation = self.generation.wrapping_add(1);
        entry.generation = self.generation;
        u64::from(self.generation) << 32 | self.entries.insert(entry) as u64
    }

    fn index(token: Token) -> (usize, u32) {
        ((token & u64::from(u32::MAX)) as usize, (token >> 32) as u32)
    }

    pub(super) fn get(&mut self, token: Token) -> Option<&mut LeasedMessage> {
        let (index, generation) = Self::index(token);
        self.entries.get_mut(index).filter(|entry| entry.generation == generation)
    }

    /// Removes a message that is settled or lost.
    pub(super) fn remove(&mut self, token: Token) -> Option<LeasedMessage> {
        let (index, generation) = Self::index(token);
        if self.entries.get(index)?.generation != generation {
            return None;
        }
        Some(self.entries.remove(index))
    }

    /// Records that a message was finally settled.
    pub(super) fn remember(&mut self, source: &Arc<Source>, sequence: u64, time: i64) {
        if self.settled.len() == REMEMBERED {
            self.settled.pop_front();
        }
        self.settled.push_back((Arc::as_ptr(source) as usize, sequence, time));
    }

    /// Returns the state of a received message. An acknowledgement may be lost with its connection, and servers of
    /// 2.9 deliver a message again, as if for the first time, when there was no open pull for its redelivery.
    pub(super) fn seen(&mut self, source: &Arc<Source>, info: &AckInfo<'_>) -> Seen {
        let sequence = info.sequence;
        if info.delivered == 1 && sequence > source.highest.fetch_max(sequence, Ordering::Relaxed) {
            return Seen::Never;
        }
        let settled = self.settled.contains(&(Arc::as_ptr(source) as usize, sequence, info.time));
        if settled { Seen::Settled } else { Seen::Perhaps }
    }

    /// Returns the message with this sequence, if it is in flight. Call it only for a repeated delivery.
    pub(super) fn at(&mut self, source: &Source, sequence: u64) -> Option<&mut LeasedMessage> {
        let mut entries = self.entries.iter_mut().map(|(_, entry)| entry);
        entries.find(|entry| entry.sequence == sequence && entry.source.stream == source.stream)
    }

    pub(super) fn iter(&mut self) -> impl Iterator<Item = (Token, &mut LeasedMessage)> {
        self.entries
            .iter_mut()
            .map(|(index, entry)| (u64::from(entry.generation) << 32 | index as u64, entry))
    }

    /// Returns the number of messages delivered to consumers.
    pub(super) fn out(&self) -> u64 {
        self.entries.iter().filter(|(_, entry)| entry.out).count() as u64
    }

    /// Drops everything because the group was moved or deleted.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.settled.clear();
    }
}

impl LeasedMessage {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        source: Arc<Source>,
        place: &AckInfo<'_>,
        ack: NatsSubject,
        message: Message,
        info: DeliveryInfo,
        first_ms: i64,
        lease_until: Instant,
        recorded: bool,
    ) -> Self {
        Self {
            generation: 0,
            source,
            sequence: place.sequence,
            time: place.time,
            ack,
            delivered: place.delivered,
            message: Arc::new(message),
            info,
            first_ms,
            lease_until,
            out: false,
            recorded,
            again: false,
        }
    }

    /// Returns whether the message has expired. A replayed message does not expire.
    pub(super) fn is_expired(&self) -> bool {
        !self.info.replayed && self.message.expires_at.is_some_and(|at| at <= jiff::Timestamp::now())
    }
}
