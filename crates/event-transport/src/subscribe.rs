//! The request for a subscription: its group, patterns, start, lease and bound.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;

use crate::bounds::{self, LONGEST};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::{Group, Pattern};

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
    /// automatically, also after [`Subscription::stop`](crate::subscription::Subscription::stop), until the last clone
    /// of the subscription is dropped. A value outside of [`Subscribe::SHORTEST_LEASE`] to [`LONGEST`](crate::LONGEST)
    /// is replaced by the nearest of the two; zero is refused.
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
    /// metric and [`Subscription::missed`](crate::subscription::Subscription::missed) report it.
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
pub fn consumer_name() -> SmolStr {
    SmolStr::new(format!("{}-{:08x}", std::process::id(), fastrand::u32(..)))
}
