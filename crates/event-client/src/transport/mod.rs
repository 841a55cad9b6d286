//! The contract between this crate and a message broker: the traits that every transport implements.
//!
//! The `event-conformance` suite tests every sentence here that contains *must*.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use smol_str::SmolStr;

use crate::bounds::{self, LONGEST};
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Durability, Message, Position};
use crate::subject::{Group, Pattern};
use crate::subscription::Subscription;

mod admin;
mod connect;
#[cfg_attr(
    not(any(feature = "nats", feature = "redis", feature = "rabbitmq")),
    allow(dead_code, reason = "only the brokers use it")
)]
mod diagnosis;
pub mod docs;
mod headers;
mod key_queue;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod outage;
mod provision;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod requests;
mod sqlite;
mod topology;

pub use admin::{Admin, DeadLetter, DeadLetterFilter, GroupStatus};
pub(crate) use connect::URLS;
pub use connect::open;
pub use diagnosis::{Finding, Severity};
pub(crate) use headers::is_reserved;
pub use memory::{MemoryConfig, MemoryTransport};
pub use provision::Provision;
pub use requests::{Frame, IncomingRequest, Replies, Requests, Respond, Responder, Serve};
pub use sqlite::SqliteTransport;
pub use topology::{Action, Change, Difference, GroupNeed, Topology};

/// A transport: it publishes, stores and delivers messages over one broker or store.
///
/// Every transport has this behaviour:
/// - `publish` must confirm a message only after storing it with the requested [`Durability`], and must refuse a
///   message that it cannot store as requested;
/// - a message must reach every group with a matching pattern, and one member of each such group;
/// - when a consumer crashes or no longer renews its leases, its deliveries must go to another member within the lease;
/// - a keyed subscription must deliver the messages of one key one at a time, in the order of publication and including
///   retries, while it continues to deliver the messages of other keys;
/// - `close` must be idempotent, must release unsettled deliveries and must resolve every pending operation.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// The capabilities of this transport with its present connection and options.
    fn capabilities(&self) -> &Capabilities;

    /// Publishes a message; the confirmation resolves when it is stored. Must not block.
    ///
    /// Messages that one task publishes one after another keep their order per topic. Publishes that are pending at
    /// the same time share a round trip or an fsync.
    fn publish(&self, message: Message) -> Confirm<Receipt>;

    /// Opens a subscription. When this returns, the group exists durably; it is created or changed if [`Provision`]
    /// allows it.
    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>>;

    /// The request/reply interface.
    fn requests(&self) -> &dyn Requests;

    /// The interface for operators: dead letters, groups and their lag.
    fn admin(&self) -> &dyn Admin;

    /// Completes pending settlements and publishes, then closes. Later calls return
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// The features and limits of a transport. It must refuse any other feature with an error that names the feature.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The scheme: `memory`, `sqlite`, `nats`, `redis`, `rabbitmq`.
    pub name: &'static str,
    /// Whether messages survive the end of the process.
    pub persistent: bool,
    /// Whether several processes can share it.
    pub shared: bool,
    /// The strongest durability that `publish` supports.
    pub max_durability: Durability,
    /// The durability that [`Durability::Default`] means.
    pub durability: Durability,
    /// Largest message in bytes ([`Message::size`]).
    pub max_payload: usize,
    /// The time for which the transport remembers a dedup id; zero when it does not support deduplication.
    pub dedup_window: Duration,
    /// Whether it supports [`Message::deliver_at`].
    pub delayed: bool,
    /// Whether it supports [`Message::expires_at`].
    pub expiry: bool,
    /// Whether a new group or a broadcast subscription can start with messages that were published before it:
    /// [`Start::Earliest`], a time or a position.
    pub replay: bool,
    /// Whether the first token of a pattern can be a wildcard.
    pub cross_topic: bool,
    /// The number of members of one keyed group that work at the same time; with `1` the other members stand by.
    pub keyed_members: usize,
}

impl Capabilities {
    /// Capabilities without any optional feature, as a starting point for a transport.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            persistent: false,
            shared: false,
            max_durability: Durability::Default,
            durability: Durability::Default,
            max_payload: 1024 * 1024,
            dedup_window: Duration::ZERO,
            delayed: false,
            expiry: false,
            replay: false,
            cross_topic: false,
            keyed_members: 1,
        }
    }

    /// Checks that the transport can store `message` as requested.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`]; [`ErrorKind::Unsupported`] with the missing feature in the text;
    /// [`ErrorKind::InvalidName`] for an empty id, a content type that is not a valid header value, and `ce-` headers
    /// of a message that is not a binary event (a binary event has `ce-id` and `ce-type`).
    pub fn check(&self, message: &Message) -> Result<()> {
        headers::check(message)?;
        let lacks =
            |what: &str| Err(Error::new(ErrorKind::Unsupported, format!("`{}` has no {what}", self.name)));
        if message.size() > self.max_payload {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {} bytes, `{}` accepts at most {}; send a reference to the data instead, or raise `max_payload`",
                    message.size(),
                    self.name,
                    self.max_payload
                ),
            ));
        }
        if message.deliver_at.is_some() && !self.delayed {
            return lacks("delayed publish");
        }
        if message.expires_at.is_some() && !self.expiry {
            return lacks("expiry");
        }
        if message.dedup && self.dedup_window.is_zero() {
            return lacks("publish deduplication");
        }
        if message.durability > self.max_durability {
            return lacks(&format!("{:?} durability as configured", message.durability));
        }
        Ok(())
    }

    /// Checks that the transport has the history for `start` of a new group or a broadcast subscription.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], with the start in the text.
    pub fn check_start(&self, start: Start) -> Result<()> {
        if self.replay || start == Start::New {
            return Ok(());
        }
        let text = format!(
            "`{}` keeps no history and cannot start with {start}; use `Start::New`: the subscription receives messages published after it",
            self.name
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }
}

/// The transport's report about a published message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the message in its topic's log, if the transport has a log.
    pub position: Option<Position>,
    /// Whether the transport already had a message with this dedup id: it keeps that message and stores no new one.
    pub duplicate: bool,
}

/// A subscription to open.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// A durable group whose members share the messages, or a broadcast that receives every message.
    pub mode: Mode,
    /// The patterns; a message is received if one of them matches its subject. The latest subscription of a group sets
    /// the patterns of the whole group: they apply to messages published from then on, while messages that already wait
    /// for the group stay.
    pub filters: Vec<Pattern>,
    /// The message with which a *new* group starts; an existing group continues at its own position.
    pub start: Start,
    /// The time for which a delivery belongs to this consumer without a renewal. The transport renews the lease
    /// automatically, also after [`Subscription::stop`], until the last clone of the subscription is dropped. A value
    /// outside of [`Subscribe::SHORTEST_LEASE`] to [`LONGEST`](crate::LONGEST) is replaced by the nearest of the two;
    /// zero is refused.
    pub lease: Duration,
    /// The highest number of unsettled deliveries at a time.
    pub max_in_flight: usize,
    /// Whether the group handles the messages of one key in order, one at a time. Messages without a key are not
    /// ordered. All live members of a group must use the same value; a new member with another value is refused with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub keyed: bool,
}

impl Subscribe {
    /// The default lease: 30 seconds. Deliveries of a crashed consumer go to another member within this time.
    pub const DEFAULT_LEASE: Duration = Duration::from_secs(30);

    /// The shortest lease: 50 milliseconds, so that a renewal can arrive in time. A shorter lease is replaced by it.
    pub const SHORTEST_LEASE: Duration = Duration::from_millis(50);

    /// Checks the subscription and limits its lease to the allowed range; every transport calls it first.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a pattern or with a lease of zero.
    pub fn checked(mut self) -> Result<Self> {
        if self.filters.is_empty() {
            return Err(Error::new(ErrorKind::Config, "a subscription needs at least one pattern"));
        }
        if self.lease.is_zero() {
            return Err(Error::new(ErrorKind::Config, "a lease must be longer than zero"));
        }
        self.lease = bounds::whole_millis(self.lease).clamp(Self::SHORTEST_LEASE, LONGEST);
        Ok(self)
    }

    /// A durable group that receives `filters`, and starts with messages published from now on.
    pub fn group(group: Group, filters: impl Into<Vec<Pattern>>) -> Self {
        Self {
            mode: Mode::Group(group),
            filters: filters.into(),
            start: Start::New,
            lease: Self::DEFAULT_LEASE,
            max_in_flight: 1,
            keyed: false,
        }
    }

    /// An ephemeral subscription that receives every matching message and settles none.
    pub fn broadcast(filters: impl Into<Vec<Pattern>>) -> Self {
        Self {
            mode: Mode::Broadcast,
            max_in_flight: 256,
            ..Self::group(Group::new("broadcast").expect("a valid name"), filters)
        }
    }
}

/// Whether a subscription shares its messages with other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A durable consumer group: it exists without members, and one of its members handles each message.
    Group(Group),
    /// Ephemeral: it ends with the subscription. Every subscriber receives every message, and messages are not settled.
    /// A subscriber that falls behind by more than the transport's limit misses the oldest messages; a log line, a
    /// metric and [`Subscription::missed`] report it.
    Broadcast,
}

/// The message with which a new group or a broadcast subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the first message published after the group was created.
    #[default]
    New,
    /// With the oldest message that is still stored.
    Earliest,
    /// With the first message stored at or after this time; a time in the future has the effect of [`Start::New`].
    Time(Timestamp),
    /// With the message at this position.
    Position(Position),
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new messages"),
            Self::Earliest => f.write_str("the earliest message"),
            Self::Time(time) => write!(f, "the messages since {time}"),
            Self::Position(position) => write!(f, "position {position}"),
        }
    }
}

/// A short random consumer name for one subscription of this process: process id and a random number.
#[allow(dead_code, reason = "each broker folder may be compiled out")]
pub(crate) fn consumer_name() -> SmolStr {
    SmolStr::new(format!("{}-{:08x}", std::process::id(), fastrand::u32(..)))
}
