//! A delivery: a message that a transport has leased to a consumer, and the ways to settle it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::sync::OwnedSemaphorePermit;

use crate::bounds;
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind};
use crate::message::{Message, Position};

/// A message leased to this consumer until the consumer settles it.
///
/// The transport renews the lease from the moment of the fetch. Dropping an unsettled delivery
/// [releases](Settlement::Release) it, so no code path can lose a message.
pub struct Delivery {
    message: Arc<Message>,
    info: DeliveryInfo,
    /// `None` once settled, and for a delivery without a lease.
    settle: Option<(Arc<dyn Settle>, Token)>,
    /// Held until settled: it keeps the subscription from fetching more than `max_in_flight` messages.
    _slot: Option<OwnedSemaphorePermit>,
}

/// A number by which the transport identifies an unsettled delivery of one subscription.
pub type Token = u64;

/// Attempt number, position and times of a delivery: the data that the transport adds to the message.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// Number of this attempt, from 1. A crash of the consumer counts as an attempt, a release does not.
    pub attempt: u32,
    /// Position of the message in its topic's log, if the transport has a log.
    pub position: Option<Position>,
    /// Time at which the transport stored the message.
    pub published_at: Option<Timestamp>,
    /// Whether the message was replayed from the dead letters.
    pub replayed: bool,
}

impl DeliveryInfo {
    /// Data of attempt number `attempt`; position and time are unknown.
    #[inline]
    pub fn new(attempt: u32) -> Self {
        Self { attempt, ..Self::default() }
    }
}

/// How a consumer settles a delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Handled: the transport never delivers it to this group again.
    Ack,
    /// Failed: the transport delivers it again, to this group only, not before `after`, as the next attempt.
    Retry {
        /// The pause before the next attempt, at most [`LONGEST`](crate::LONGEST).
        after: Duration,
        /// The error of this attempt, stored with the message.
        error: SmolStr,
    },
    /// Failed for good: the transport first stores a dead letter with the original bytes, then settles the delivery,
    /// never in the other order.
    Reject(Rejection),
    /// Not tried: the message returns to the group at once, and the attempt is not counted.
    Release,
    /// Not tried: the transport delivers it to the group again, not before `after`, and the attempt is not counted. In
    /// a keyed group the later messages of the same key wait for it.
    Defer {
        /// The pause before the next delivery, at most [`LONGEST`](crate::LONGEST).
        after: Duration,
    },
}

/// The reason and the error text for which a message becomes a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The class of failure.
    pub reason: Reason,
    /// The error's text, cut to [`Rejection::MAX_ERROR`] bytes.
    pub error: SmolStr,
}

impl Rejection {
    /// Longest error text in bytes that is stored with a dead letter: the headers of a message must fit into one frame
    /// of the broker's protocol.
    pub const MAX_ERROR: usize = 4096;

    /// A rejection whose error text is cut to [`MAX_ERROR`](Self::MAX_ERROR) bytes.
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
    /// The handler returned a permanent error: a retry cannot succeed.
    Permanent,
    /// The payload does not decode as its content type or as the handler's type.
    Undecodable,
    /// No handler accepts the event type.
    UnknownType,
    /// No member of the group could read this version of the handler's event within the time set with
    /// `Handler::await_version` of a service.
    UnknownVersion,
    /// The sender is not allowed to send this message.
    Unauthorised,
    /// It was delivered more often than the retry policy allows attempts: consumers probably crash on it.
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

    /// The text that is stored with the dead letter and shown in reports: `exhausted`.
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

/// The settlement interface that a transport implements; one object per subscription.
pub trait Settle: Send + Sync + 'static {
    /// Settles the delivery `token`. Must not block. The transport completes the settlement even if the confirmation
    /// is dropped.
    ///
    /// The confirmation is [`ErrorKind::LeaseLost`] when another consumer has the lease.
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()>;

    /// Renews the lease of `token` now, because the handler is still working.
    fn in_progress(&self, token: Token) -> Confirm<()>;

    /// Whether the consumer may still start to handle `token`. A process that was suspended for longer than its lease
    /// must not start a message that another member may have received meanwhile.
    fn is_ours(&self, token: Token) -> bool {
        let _ = token;
        true
    }
}

/// The error of a settlement or renewal whose lease has passed to another consumer.
pub fn lease_lost() -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        "the lease ended and the message went to another consumer, or its group was moved or deleted",
    )
    .during("settle")
}

impl Delivery {
    /// A delivery of a leased message; `slot` is one of the subscription's `max_in_flight` permits.
    #[inline]
    pub fn new(
        message: Arc<Message>,
        info: DeliveryInfo,
        settle: Arc<dyn Settle>,
        token: Token,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { message, info, settle: Some((settle, token)), _slot: Some(slot) }
    }

    /// A delivery of a broadcast subscription: it has no lease, and settling it has no effect.
    #[inline]
    pub fn unleased(message: Arc<Message>, info: DeliveryInfo, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self { message, info, settle: None, _slot: slot }
    }

    /// The message.
    #[inline]
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// Attempt number, position and publication time.
    #[inline]
    pub fn info(&self) -> &DeliveryInfo {
        &self.info
    }

    /// Whether the consumer may start to handle it: the lease was not lost while the delivery was queued.
    #[inline]
    pub fn is_ours(&self) -> bool {
        self.settle.as_ref().is_none_or(|(settle, token)| settle.is_ours(*token))
    }

    /// Settles it as handled. Await the confirmation to know that the transport has stored the acknowledgement.
    #[inline]
    pub fn ack(self) -> Confirm<()> {
        self.settle(Settlement::Ack)
    }

    /// Settles it as failed; the transport delivers it again after `after`.
    pub fn retry(self, after: Duration, error: impl Into<SmolStr>) -> Confirm<()> {
        self.settle(Settlement::Retry { after, error: error.into() })
    }

    /// Settles it as failed for good: it becomes a dead letter.
    pub fn reject(self, rejection: Rejection) -> Confirm<()> {
        self.settle(Settlement::Reject(rejection))
    }

    /// Returns it untried to the group, which may receive it again at once; the attempt is not counted.
    #[inline]
    pub fn release(self) -> Confirm<()> {
        self.settle(Settlement::Release)
    }

    /// Returns it untried to the group, which receives it again after `after`; the attempt is not counted.
    pub fn defer(self, after: Duration) -> Confirm<()> {
        self.settle(Settlement::Defer { after })
    }

    /// Renews the lease now, in addition to the automatic renewal by the transport.
    #[inline]
    pub fn in_progress(&self) -> Confirm<()> {
        match &self.settle {
            Some((settle, token)) => settle.in_progress(*token),
            None => Confirm::ready(Ok(())),
        }
    }

    /// Settles it with `settlement`.
    #[inline]
    pub fn settle(mut self, mut settlement: Settlement) -> Confirm<()> {
        // In every transport one task settles for many deliveries: a duration that overflows there would end that task
        // for all of them.
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
    #[inline]
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
