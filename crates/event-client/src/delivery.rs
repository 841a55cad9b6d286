//! A message in a consumer's hands, and how it is given back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::sync::OwnedSemaphorePermit;

use crate::bounds;
use crate::confirm::Confirm;
use crate::message::{Message, Position};

/// A message leased to this consumer until it is settled.
///
/// The transport renews the lease from the moment of the fetch. A delivery that is dropped unsettled is
/// [released](Settlement::Release), so no code path can lose one.
pub struct Delivery {
    message: Arc<Message>,
    info: DeliveryInfo,
    /// `None` once settled.
    settle: Option<(Arc<dyn Settle>, Token)>,
    /// Held while unsettled: the subscription fetches no more than its credit.
    _slot: Option<OwnedSemaphorePermit>,
}

/// The transport's own name for an outstanding delivery of one subscription.
pub type Token = u64;

/// What the transport knows about a delivery beside the message.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// From 1; a crash of the consumer counts, a release does not.
    pub attempt: u32,
    /// Where the message stands in its topic's log, if the transport has one.
    pub position: Option<Position>,
    /// When the transport stored it.
    pub published_at: Option<Timestamp>,
    /// Set when it was replayed from the dead letters.
    pub replayed: bool,
}

impl DeliveryInfo {
    /// Facts of a first or later delivery.
    pub fn new(attempt: u32) -> Self {
        Self { attempt, ..Self::default() }
    }
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Handled; never delivered to this group again.
    Ack,
    /// Failed; deliver again to this group only, not before `after`, as the next attempt.
    Retry {
        /// How long to wait, at most [`LONGEST`](crate::LONGEST).
        after: Duration,
        /// Why, kept with the message.
        error: SmolStr,
    },
    /// Failed for good: store as a dead letter with the original bytes, then settle, never the other way round.
    Reject(Rejection),
    /// Not tried: back to the group at once, the attempt not counted.
    Release,
    /// Not tried: back to the group, which gets it again not before `after`; the attempt is not counted. Of a keyed
    /// group, the later messages of its key wait behind it.
    Defer {
        /// How long to wait.
        after: Duration,
    },
}

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The class of failure.
    pub reason: Reason,
    /// The error's text, cut to [`Rejection::MAX_ERROR`] bytes.
    pub error: SmolStr,
}

impl Rejection {
    /// Longest error text kept with a dead letter: broker headers must fit one frame.
    pub const MAX_ERROR: usize = 4096;

    /// A rejection with its text cut to size.
    pub fn new(reason: Reason, error: impl fmt::Display) -> Self {
        let text = error.to_string();
        Self { reason, error: SmolStr::new(&text[..text.floor_char_boundary(Self::MAX_ERROR)]) }
    }
}

/// The class of failure of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// All attempts failed.
    Exhausted,
    /// The handler said that trying again cannot help.
    Permanent,
    /// The bytes are not what the content type or the handler's type says.
    Undecodable,
    /// No handler knows the type.
    UnknownType,
    /// It is a version of the handler's event that no member of the group knew for as long as
    /// [`Handler::await_version`](crate::service::Handler::await_version) says.
    UnknownVersion,
    /// The sender may not send this.
    Unauthorised,
    /// Consumers kept dying on it.
    CrashLoop,
}

impl Reason {
    /// Every reason, for parsers and tables.
    pub const ALL: [Self; 7] = [
        Self::Exhausted,
        Self::Permanent,
        Self::Undecodable,
        Self::UnknownType,
        Self::UnknownVersion,
        Self::Unauthorised,
        Self::CrashLoop,
    ];

    /// The word stored and shown: `exhausted`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
            Self::UnknownVersion => "unknown-version",
            Self::Unauthorised => "unauthorised",
            Self::CrashLoop => "crash-loop",
        }
    }
}

/// The transport's side of settling: one per subscription.
pub trait Settle: Send + Sync + 'static {
    /// Settles `token`. Must not block. The work goes on when the confirmation is dropped.
    ///
    /// Answers [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost) when another consumer owns the message now.
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()>;

    /// Says that the handler is still working: renews the lease now.
    fn in_progress(&self, token: Token) -> Confirm<()>;

    /// Whether `token` may still be begun. A process that stood still beyond its lease must not begin what another
    /// member has by now.
    fn is_ours(&self, token: Token) -> bool {
        let _ = token;
        true
    }
}

impl Delivery {
    /// Hands a leased message to a consumer; `slot` is one unit of the subscription's credit.
    pub fn new(
        message: Arc<Message>,
        info: DeliveryInfo,
        settle: Arc<dyn Settle>,
        token: Token,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { message, info, settle: Some((settle, token)), _slot: Some(slot) }
    }

    /// A delivery that nobody waits for: of a broadcast subscription.
    pub fn unleased(message: Arc<Message>, info: DeliveryInfo, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self { message, info, settle: None, _slot: slot }
    }

    /// The message.
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// Attempt number, position and times.
    pub fn info(&self) -> &DeliveryInfo {
        &self.info
    }

    /// Whether it may be begun: its lease was not lost while it waited.
    pub(crate) fn is_ours(&self) -> bool {
        self.settle.as_ref().is_none_or(|(settle, token)| settle.is_ours(*token))
    }

    /// Handled. Await the confirmation to know that it is stored.
    pub fn ack(self) -> Confirm<()> {
        self.settle(Settlement::Ack)
    }

    /// Failed; deliver again after `after`.
    pub fn retry(self, after: Duration, error: impl Into<SmolStr>) -> Confirm<()> {
        self.settle(Settlement::Retry { after, error: error.into() })
    }

    /// Failed for good.
    pub fn reject(self, rejection: Rejection) -> Confirm<()> {
        self.settle(Settlement::Reject(rejection))
    }

    /// Not tried; somebody else may.
    pub fn release(self) -> Confirm<()> {
        self.settle(Settlement::Release)
    }

    /// Not tried; somebody else may, after `after`.
    pub fn defer(self, after: Duration) -> Confirm<()> {
        self.settle(Settlement::Defer { after })
    }

    /// Renews the lease now, beside the renewal that the transport does by itself.
    pub fn in_progress(&self) -> Confirm<()> {
        match &self.settle {
            Some((settle, token)) => settle.in_progress(*token),
            None => Confirm::ready(Ok(())),
        }
    }

    /// Settles as told.
    pub fn settle(mut self, mut settlement: Settlement) -> Confirm<()> {
        // Every transport's settling shares a task: a number that overflows there would end it for everybody.
        if let Settlement::Retry { after, .. } | Settlement::Defer { after } = &mut settlement {
            *after = bounds::bounded(*after);
        }
        match self.settle.take() {
            Some((settle, token)) => settle.settle(token, settlement),
            None => Confirm::ready(Ok(())),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some((settle, token)) = self.settle.take() {
            drop(settle.settle(token, Settlement::Release));
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
