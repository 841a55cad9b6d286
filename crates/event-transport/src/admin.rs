//! The operator interface of a transport: dead letters, groups and their lag, topology and server checks.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use smol_str::SmolStr;

use super::{Change, Finding, Start, Topology};
use crate::delivery::Reason;
use crate::error::Result;
use crate::message::Message;
use crate::subject::{Group, Pattern};

/// Operations for operators: dead letters, groups, topology and server checks.
pub trait Admin: Send + Sync {
    /// Returns the chosen dead letters, oldest first.
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>>;

    /// Delivers the chosen dead letters again, each to the group that rejected it and to no other group. Returns the
    /// number of replayed letters.
    ///
    /// Attempts start at 1 again, and the message is marked as replayed. In one atomic step the message becomes
    /// deliverable and its dead letter is removed. A replayed message no longer expires. If the group of a chosen
    /// letter has been deleted, this returns [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) and replays nothing.
    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>>;

    /// Deletes the chosen dead letters and returns their number.
    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>>;

    /// Returns every durable group with its lag.
    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>>;

    /// Compares the store with `topology` and returns the objects that are missing or different. Changes nothing. The
    /// result is empty when there is nothing to do.
    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>>;

    /// Creates the missing objects and changes the different ones, whatever [`Provision`](super::Provision) is set.
    /// Returns the changes that were necessary. [Blocked](super::Action::Blocked) objects stay as they are.
    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>>;

    /// Moves a group to `start`: every message from there on is delivered to this group again, and the group loses the
    /// leases of its unsettled deliveries. Returns [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an unknown
    /// group.
    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>>;

    /// Deletes a durable group and its waiting messages. The subscriptions of its members end; its dead letters stay.
    /// Returns [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an unknown group. Only an operator's command
    /// calls this.
    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>>;

    /// Checks the server behind the transport: version, free capacity, durability, security and clock. Each finding
    /// has a remedy. Returns nothing for a transport without a server.
    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Measures one round trip to the store of the messages.
    fn ping(&self) -> BoxFuture<'_, Result<Duration>>;
}

/// A message that a group rejected.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The id of the dead letter, unique in the transport; it is not the message's id.
    pub id: SmolStr,
    /// The group that rejected the message.
    pub group: Group,
    /// The original message with unchanged bytes.
    pub message: Message,
    /// The class of failure.
    pub reason: Reason,
    /// The text of the last error.
    pub error: SmolStr,
    /// The number of deliveries to the group.
    pub attempts: u32,
    /// Time of publication.
    pub published_at: Timestamp,
    /// Time of the first delivery to this group.
    pub first_attempt_at: Timestamp,
    /// Time at which the message became a dead letter.
    pub dead_at: Timestamp,
}

impl DeadLetter {
    /// A dead letter for `message` of `group`, without an error text; `published_at` and `first_attempt_at` are set to
    /// `dead_at`.
    pub fn new(id: SmolStr, group: Group, message: Message, reason: Reason, dead_at: Timestamp) -> Self {
        Self {
            id,
            group,
            message,
            reason,
            error: SmolStr::default(),
            attempts: 0,
            published_at: dead_at,
            first_attempt_at: dead_at,
            dead_at,
        }
    }
}

/// Chooses dead letters: a letter must fulfil every condition that is set. The default chooses all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadLetterFilter {
    /// Only letters with one of these ids; empty for any id.
    pub ids: Vec<SmolStr>,
    /// Only letters of this group.
    pub group: Option<Group>,
    /// Only letters whose subject matches this pattern.
    pub subject: Option<Pattern>,
    /// Only letters with this reason.
    pub reason: Option<Reason>,
    /// The highest number of letters, oldest first; `0` means no limit.
    pub limit: usize,
}

/// The lag of a group: its waiting, unsettled and rejected messages.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The group.
    #[serde(serialize_with = "display")]
    pub group: Group,
    /// The patterns that it receives.
    #[serde(serialize_with = "display_all")]
    pub filters: Vec<Pattern>,
    /// The number of stored and matching messages that are not fetched yet, retries included.
    pub waiting: u64,
    /// The number of messages that are fetched and not settled.
    pub in_flight: u64,
    /// The number of messages that wait for a retry.
    pub retrying: u64,
    /// The number of dead letters.
    pub dead: u64,
    /// Publication time of the oldest unsettled message.
    pub oldest_unsettled: Option<Timestamp>,
    /// The number of connected consumers, where the transport can count them.
    pub members: u64,
}

impl GroupStatus {
    /// A group without messages and members.
    pub fn new(group: Group, filters: Vec<Pattern>) -> Self {
        Self {
            group,
            filters,
            waiting: 0,
            in_flight: 0,
            retrying: 0,
            dead: 0,
            oldest_unsettled: None,
            members: 0,
        }
    }
}

fn display<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn display_all<S: serde::Serializer>(values: &[Pattern], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(Pattern::as_str))
}
