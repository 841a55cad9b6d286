//! The features and limits of a transport, and the check of a message against them.

use std::time::Duration;

use super::headers;
use super::subscribe::Start;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Durability, Message};

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
