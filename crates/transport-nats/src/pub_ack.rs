//! The PubAck that confirms a publish, and the byte budget that unconfirmed messages take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use tokio::time::Instant;

use super::api::ApiError;
use event_transport::Receipt;
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::{Message, Position};

/// Largest number of bytes of unconfirmed messages. They are kept in memory, to be sent again.
const MOST: usize = 256 << 20;
/// Estimated bytes that a message takes in addition to its own size.
const OVERHEAD: usize = 256;

/// The bytes of one connection's unconfirmed messages.
#[derive(Clone, Debug, Default)]
pub(super) struct InflightBudget(Arc<AtomicUsize>);

impl InflightBudget {
    /// Reserves the bytes of a message until its publish is answered.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when the budget is used up.
    pub(super) fn reserve(&self, message: &Message) -> Result<(PendingPublish, Confirm<Receipt>)> {
        let bytes = message.size() + OVERHEAD;
        if self.0.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST {
            self.0.fetch_sub(bytes, Ordering::Relaxed);
            let text = "too many messages are not confirmed yet; await confirmations before publishing more";
            return Err(Error::new(ErrorKind::Full, text).with("limit", MOST));
        }
        let (answer, confirm) = Confirm::channel();
        Ok((PendingPublish { answer, _reserved: Some(Reserved { budget: self.clone(), bytes }) }, confirm))
    }
}

/// A publish that waits for its receipt.
pub(super) struct PendingPublish {
    answer: Answer<Receipt>,
    _reserved: Option<Reserved>,
}

/// A message of a user that is to be sent to its topic.
pub(super) struct Outgoing {
    pub(super) message: Message,
    pub(super) answer: PendingPublish,
    pub(super) deadline: Instant,
}

struct Reserved {
    budget: InflightBudget,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl PendingPublish {
    /// Creates a publish that reserves nothing: an internal one, or one whose bytes are reserved already.
    pub(super) fn free() -> (Self, Confirm<Receipt>) {
        let (answer, confirm) = Confirm::channel();
        (Self { answer, _reserved: None }, confirm)
    }

    /// Answers the caller, if it still waits.
    pub(super) fn send(self, result: Result<Receipt>) {
        let _ = self.answer.send(result);
    }
}

/// The server's PubAck.
#[derive(Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub(super) seq: u64,
    #[serde(default)]
    duplicate: bool,
    /// Number of messages in the batch that this PubAck confirms.
    #[serde(default)]
    pub(super) count: usize,
    pub(super) error: Option<ApiError>,
}

impl Ack {
    /// Converts a PubAck to the receipt of the publisher.
    pub(super) fn receipt(payload: &[u8]) -> Result<Receipt> {
        match serde_json::from_slice::<Self>(payload) {
            Ok(Self { error: Some(error), .. }) => Err(Error::from(error)),
            Ok(ack) => {
                Ok(Receipt { position: Some(Position(u128::from(ack.seq))), duplicate: ack.duplicate })
            }
            Err(error) => {
                let text = "the server's confirmation could not be parsed";
                Err(Error::new(ErrorKind::Internal, text).because(error))
            }
        }
    }
}
