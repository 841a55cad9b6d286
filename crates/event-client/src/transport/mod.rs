//! The contract between this crate and a broker: five small doors, and what may stand behind them.
//!
//! Every sentence here that says *must* is a case of the `event-conformance` exam.

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
mod diagnosis;
mod headers;
mod key_queue;
mod memory;
#[cfg(feature = "nats")]
mod nats;
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

/// A way for messages to travel.
///
/// Behaviour on every transport:
/// - `publish` must confirm only after the message is stored as safely as its [`Durability`] says, and must
///   refuse what it cannot keep;
/// - a message must reach every group whose patterns match, and one member of each group;
/// - a crashed or silent consumer's deliveries must go to another member within the lease;
/// - per key, a keyed subscription must deliver one unsettled message at a time, in the order of publication,
///   retries included, while other keys go on;
/// - `close` must be idempotent, hand back what is unsettled and answer everything that waits.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// What this transport, as connected, can do.
    fn capabilities(&self) -> &Capabilities;

    /// Takes a message; the answer comes when it is stored. Must not block.
    ///
    /// Messages published one after another by one task keep their order per topic. Publishes that wait at the
    /// same time share a round trip or an fsync.
    fn publish(&self, message: Message) -> Confirm<Receipt>;

    /// Opens a subscription; the group exists durably when this returns, made or changed as far as [`Provision`] allows.
    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>>;

    /// Request and reply.
    fn requests(&self) -> &dyn Requests;

    /// Dead letters, lag and groups.
    fn admin(&self) -> &dyn Admin;

    /// Settles, flushes and closes. Later calls answer [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// What a transport promises; everything else it must refuse by name.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The scheme: `memory`, `sqlite`, `nats`, `redis`, `rabbitmq`.
    pub name: &'static str,
    /// Messages survive the end of the process.
    pub persistent: bool,
    /// Several processes may share it.
    pub shared: bool,
    /// Strongest class that `publish` can promise.
    pub max_durability: Durability,
    /// Class that [`Durability::Default`] stands for.
    pub durability: Durability,
    /// Largest message in bytes ([`Message::size`]).
    pub max_payload: usize,
    /// How long a dedup id is remembered; zero when unsupported.
    pub dedup_window: Duration,
    /// `deliver_at` is kept.
    pub delayed: bool,
    /// `expires_at` is kept.
    pub expiry: bool,
    /// A new group or a broadcast subscription may start with what was published before it: [`Start::Earliest`], a time
    /// or a position.
    pub replay: bool,
    /// A pattern's first token may be a wildcard.
    pub cross_topic: bool,
    /// Members of one keyed group that work at the same time; `1` means the others stand by.
    pub keyed_members: usize,
}

impl Capabilities {
    /// A transport that can do nothing special, to be filled in.
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

    /// Refuses a message that the transport cannot keep as asked.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] and [`ErrorKind::Unsupported`], naming what is lacking; [`ErrorKind::InvalidName`] for an
    /// empty id, a content type that is no header's value, and `ce-` headers of a message that has no `ce-type`.
    pub fn check(&self, message: &Message) -> Result<()> {
        headers::check(message)?;
        let lacks =
            |what: &str| Err(Error::new(ErrorKind::Unsupported, format!("`{}` has no {what}", self.name)));
        if message.size() > self.max_payload {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message takes {} bytes, `{}` takes at most {}; send a reference to the data instead, or raise `max_payload`",
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

    /// Refuses a start of a new group or a broadcast subscription that the transport has no history for.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], naming the start.
    pub fn check_start(&self, start: Start) -> Result<()> {
        if self.replay || start == Start::New {
            return Ok(());
        }
        let text = format!(
            "`{}` keeps no history and cannot start with {start}; a subscription starts there with what is published after it (`Start::New`)",
            self.name
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }
}

/// What the transport says of a stored message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Where it stands in its topic's log, if the transport has one.
    pub position: Option<Position>,
    /// The dedup id was known: the earlier message stands, nothing was added.
    pub duplicate: bool,
}

/// A subscription to open.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Shared durable work, or everything for oneself.
    pub mode: Mode,
    /// What to receive; any of them. The latest subscription of a group decides for the whole group: what is
    /// published from then on goes by its filters, what already waits stays.
    pub filters: Vec<Pattern>,
    /// Where a *new* group starts; an existing group goes on where it was.
    pub start: Start,
    /// How long a delivery stays ours without renewal. The transport renews by itself, also after
    /// [`Subscription::stop`], until the last clone of the subscription is dropped. From
    /// [`Subscribe::SHORTEST_LEASE`] to [`LONGEST`](crate::LONGEST): what lies outside counts as the nearest of them,
    /// but for zero, which is refused.
    pub lease: Duration,
    /// Most unsettled deliveries at a time.
    pub max_in_flight: usize,
    /// In order per key, one at a time per key; messages without a key are free. All live members of a group must
    /// agree on it, or the newcomer is refused with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub keyed: bool,
}

impl Subscribe {
    /// Default lease: a crashed consumer's work moves on within this time.
    pub const DEFAULT_LEASE: Duration = Duration::from_secs(30);

    /// A lease that is shorter counts as this one: a renewal must have the time to arrive.
    pub const SHORTEST_LEASE: Duration = Duration::from_millis(50);

    /// The subscription as a transport opens it, its lease within bounds.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a pattern or with a lease of nothing.
    pub fn checked(mut self) -> Result<Self> {
        if self.filters.is_empty() {
            return Err(Error::new(ErrorKind::Config, "a subscription needs at least one pattern"));
        }
        if self.lease.is_zero() {
            return Err(Error::new(ErrorKind::Config, "a lease must be longer than nothing"));
        }
        self.lease = bounds::whole_millis(self.lease).clamp(Self::SHORTEST_LEASE, LONGEST);
        Ok(self)
    }

    /// A durable group over `filters`, starting with what is published from now on.
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

    /// An ephemeral subscription that sees every message and settles nothing.
    pub fn broadcast(filters: impl Into<Vec<Pattern>>) -> Self {
        Self {
            mode: Mode::Broadcast,
            max_in_flight: 256,
            ..Self::group(Group::new("broadcast").expect("a valid name"), filters)
        }
    }
}

/// Who shares the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Durable: survives its members, each message handled by one of them.
    Group(Group),
    /// Ephemeral: ends with the subscription; every subscriber sees every message, nothing is settled.
    /// A subscriber that falls behind a transport's bound loses the oldest and is told by a log line and a metric.
    Broadcast,
}

/// Where a new group or a broadcast subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With what is published after the group first existed.
    #[default]
    New,
    /// With the oldest message still kept.
    Earliest,
    /// With the first message stored at or after this time; a time to come is as [`Start::New`].
    Time(Timestamp),
    /// With this position.
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

/// A short random name for this process's end of a subscription.
#[allow(dead_code, reason = "each broker folder may be compiled out")]
pub(crate) fn consumer_name() -> SmolStr {
    SmolStr::new(format!("{}-{:08x}", std::process::id(), fastrand::u32(..)))
}
