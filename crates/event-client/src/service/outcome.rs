//! Outcomes: the result of handling as a value, and the types that handlers may return.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use smol_str::SmolStr;

use crate::delivery::Reason;
use event_transport::error::{Error, ErrorKind};

/// The result of handling one message.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The message was handled.
    Ack,
    /// This attempt failed. With `after: None` the handler's [`RetryPolicy`](super::RetryPolicy) gives the wait.
    Retry {
        /// The wait before the next attempt, if the handler sets it.
        after: Option<Duration>,
        /// The error text.
        error: SmolStr,
    },
    /// The message failed for good and becomes a dead letter.
    Reject {
        /// The class of failure.
        reason: Reason,
        /// The error text.
        error: SmolStr,
    },
    /// The message was not handled; another member may handle it. Does not count as an attempt.
    Release,
}

/// An [`Outcome`] without its details, for counting and comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// The message was handled.
    Ack,
    /// The attempt failed and is retried.
    Retry,
    /// The message failed for good.
    Reject,
    /// The message was released without an attempt.
    Release,
}

impl Outcome {
    /// Returns the kind of this outcome.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Ack => OutcomeKind::Ack,
            Self::Retry { .. } => OutcomeKind::Retry,
            Self::Reject { .. } => OutcomeKind::Reject,
            Self::Release => OutcomeKind::Release,
        }
    }

    /// Creates the outcome of a failure that another attempt may correct.
    pub fn retry(error: impl fmt::Display) -> Self {
        Self::Retry { after: None, error: smol_str::format_smolstr!("{error}") }
    }

    /// Creates the outcome of a failure that another attempt may correct after `wait`.
    pub fn retry_after(wait: Duration, error: impl fmt::Display) -> Self {
        Self::Retry { after: Some(wait), error: smol_str::format_smolstr!("{error}") }
    }

    /// Creates the outcome of a failure that no attempt can correct.
    pub fn reject(error: impl fmt::Display) -> Self {
        Self::Reject { reason: Reason::Permanent, error: smol_str::format_smolstr!("{error}") }
    }

    /// Returns the label used in metrics and assertions.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Retry { .. } => "retry",
            Self::Reject { .. } => "reject",
            Self::Release => "release",
        }
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        let reason = match error.kind() {
            ErrorKind::Decode => Reason::Undecodable,
            ErrorKind::UnknownType => Reason::UnknownType,
            ErrorKind::Denied => Reason::Unauthorised,
            ErrorKind::Closed => return Self::Release,
            _ => return Self::retry(error),
        };
        Self::Reject { reason, error: smol_str::format_smolstr!("{error}") }
    }
}

/// The return type of a handler: `()`, an [`Outcome`], or a `Result` of either with any error.
///
/// An error is retried, unless it is a [`Permanent`] or a [`RetryAfter`], or has one in its chain of sources.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not something a handler can return",
    note = "return `()`, `Outcome`, or `Result<(), E>` where `E` implements `std::error::Error`"
)]
pub trait IntoOutcome {
    /// Converts this value into an outcome.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Ack
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl<T: IntoOutcome, E: Into<Box<dyn StdError + Send + Sync>>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => classify(&*error.into()),
        }
    }
}

/// Searches an error's chain of sources for a [`Permanent`] or a [`RetryAfter`].
pub(crate) fn classify(error: &(dyn StdError + 'static)) -> Outcome {
    let mut link = Some(error);
    while let Some(at) = link {
        if at.is::<Permanent>() {
            return Outcome::reject(Chain(error));
        }
        if let Some(RetryAfter { wait, .. }) = at.downcast_ref() {
            return Outcome::retry_after(*wait, Chain(error));
        }
        link = at.source();
    }
    Outcome::retry(Chain(error))
}

/// An error with its causes on one line.
struct Chain<'a>(&'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut link = self.0.source();
        while let Some(cause) = link {
            write!(f, ": {cause}")?;
            link = cause.source();
        }
        Ok(())
    }
}

/// An error that another attempt cannot correct: the message becomes a dead letter at once.
///
/// ```
/// # use event_client::service::Permanent;
/// fn parse(text: &str) -> Result<u32, Permanent> { text.parse().map_err(Permanent::new) }
/// assert_eq!(parse("x").unwrap_err().to_string(), "invalid digit found in string");
/// ```
#[derive(Debug)]
pub struct Permanent(Box<dyn StdError + Send + Sync>);

impl Permanent {
    /// Marks `error` as permanent.
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Permanent {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// An error with the wait before the next attempt, for example from a `Retry-After` header.
#[derive(Debug)]
pub struct RetryAfter {
    wait: Duration,
    error: Box<dyn StdError + Send + Sync>,
}

impl RetryAfter {
    /// Marks `error` as one that is retried after `wait`.
    pub fn new(wait: Duration, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { wait, error: error.into() }
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for RetryAfter {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum PayError {
        #[error("the card was declined")]
        Declined(#[source] Permanent),
        #[error("the bank is down")]
        Down(#[source] std::io::Error),
    }

    #[test]
    fn the_chain_of_an_error_decides_its_outcome() {
        let declined: Result<(), _> = Err(PayError::Declined(Permanent::new("code 51")));
        assert_eq!(declined.into_outcome(), Outcome::reject("the card was declined: code 51"));
        let down: Result<(), _> = Err(PayError::Down(std::io::Error::other("refused")));
        assert_eq!(down.into_outcome(), Outcome::retry("the bank is down: refused"));
        let busy: Result<(), _> = Err(RetryAfter::new(Duration::from_secs(7), "busy"));
        assert_eq!(busy.into_outcome(), Outcome::retry_after(Duration::from_secs(7), "busy"));
        let text: Result<(), String> = Err("plain text".into());
        assert_eq!(text.into_outcome().as_str(), "retry");
    }
}
