//! Looking into a transport: dead letters, groups and their lag.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use smol_str::SmolStr;

use super::{Change, Finding, Start, Topology};
use crate::delivery::Reason;
use crate::error::Result;
use crate::message::Message;
use crate::subject::{Group, Pattern};

/// The operator's door.
pub trait Admin: Send + Sync {
    /// Dead letters, oldest first.
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>>;

    /// Sends the chosen dead letters to the group that failed on them, and to no other; answers how many.
    ///
    /// Attempts start at 1 again and the message says that it is replayed. A letter leaves the dead letters in the
    /// same step in which it becomes deliverable. A replayed message no longer expires. When the group of a chosen
    /// letter is deleted the answer is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) and nothing is replayed.
    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>>;

    /// Deletes the chosen dead letters; answers how many.
    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>>;

    /// Every durable group with its lag.
    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>>;

    /// What is missing or differs from `topology`; changes nothing. Empty when all is as it should be.
    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>>;

    /// Creates what is missing and changes what differs, whatever [`Provision`](super::Provision) says; answers what
    /// was to be done. What is [blocked](super::Action::Blocked) is left as it is.
    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>>;

    /// Moves a group to `start`: everything from there on is delivered to this group again.
    /// Unsettled deliveries are given up. Answers [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an unknown group.
    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>>;

    /// Deletes a durable group and all that waits for it; its members' subscriptions end, its dead letters stay.
    /// Answers [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an unknown group. Never called by anything
    /// but an operator's command.
    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>>;

    /// What there is to say of the server behind the transport: its version, room, durability, safety and clock, each
    /// with what to change. Nothing where there is no server.
    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// One round trip to whatever stores the messages.
    fn ping(&self) -> BoxFuture<'_, Result<Duration>>;
}

/// A message that a group gave up on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The letter's own id, unique in the transport.
    pub id: SmolStr,
    /// The group that failed.
    pub group: Group,
    /// The original message, its bytes untouched.
    pub message: Message,
    /// The class of failure.
    pub reason: Reason,
    /// The last error's text.
    pub error: SmolStr,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it was published.
    pub published_at: Timestamp,
    /// When this group first received it.
    pub first_attempt_at: Timestamp,
    /// When it was given up.
    pub dead_at: Timestamp,
}

impl DeadLetter {
    /// A letter for `message` of `group`; times default to `dead_at`.
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

/// Chooses dead letters; every condition given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadLetterFilter {
    /// These letters only.
    pub ids: Vec<SmolStr>,
    /// Of this group.
    pub group: Option<Group>,
    /// Whose subject matches.
    pub subject: Option<Pattern>,
    /// With this reason.
    pub reason: Option<Reason>,
    /// At most so many, oldest first; `0` is no limit.
    pub limit: usize,
}

/// How far a group is.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The group.
    #[serde(serialize_with = "display")]
    pub group: Group,
    /// What it receives.
    #[serde(serialize_with = "display_all")]
    pub filters: Vec<Pattern>,
    /// Stored, matching and not yet fetched, retries included.
    pub waiting: u64,
    /// Fetched and not settled.
    pub in_flight: u64,
    /// Waiting for a retry.
    pub retrying: u64,
    /// Given up.
    pub dead: u64,
    /// Publication time of the oldest message that is not settled.
    pub oldest_unsettled: Option<Timestamp>,
    /// Consumers connected now, where the transport knows.
    pub members: u64,
}

impl GroupStatus {
    /// A group with nothing to do.
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
