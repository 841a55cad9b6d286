//! The answer of a publish, and the room that its message takes until it is given.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

use super::api::ApiError;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, Position};
use crate::transport::Receipt;

/// Most bytes of messages that nobody has confirmed yet. They are kept, to be sent again.
const MOST: usize = 256 << 20;
/// What a message takes beside its own size, about.
const OVERHEAD: usize = 256;

/// Bytes of one connection's unconfirmed messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    /// Room for a message.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when there is none.
    pub(super) fn enter(&self, message: &Message) -> Result<(Ticket, Confirm<Receipt>)> {
        let bytes = message.size() + OVERHEAD;
        if self.0.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST {
            self.0.fetch_sub(bytes, Ordering::Relaxed);
            let text = "too many messages are not confirmed yet; await confirmations before publishing more";
            return Err(Error::new(ErrorKind::Full, text).with("limit", MOST));
        }
        let (answer, confirm) = Confirm::channel();
        Ok((Ticket { answer, _place: Some(Place { room: self.clone(), bytes }) }, confirm))
    }
}

/// Who waits for a receipt.
pub(super) struct Ticket {
    answer: Answer<Receipt>,
    _place: Option<Place>,
}

struct Place {
    room: Room,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Ticket {
    /// For a message of the library's own, or one that has its place already.
    pub(super) fn free() -> (Self, Confirm<Receipt>) {
        let (answer, confirm) = Confirm::channel();
        (Self { answer, _place: None }, confirm)
    }

    /// Answers, if anybody still listens.
    pub(super) fn send(self, result: Result<Receipt>) {
        let _ = self.answer.send(result);
    }
}

/// The server's confirmation.
#[derive(Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub(super) seq: u64,
    #[serde(default)]
    duplicate: bool,
    /// Messages of the batch that this one ended.
    #[serde(default)]
    pub(super) count: usize,
    pub(super) error: Option<ApiError>,
}

impl Ack {
    /// What it means to who published.
    pub(super) fn receipt(payload: &[u8]) -> Result<Receipt> {
        match serde_json::from_slice::<Self>(payload) {
            Ok(Self { error: Some(error), .. }) => Err(Error::from(error)),
            Ok(ack) => {
                Ok(Receipt { position: Some(Position(u128::from(ack.seq))), duplicate: ack.duplicate })
            }
            Err(error) => {
                let text = "the server's confirmation is not understood";
                Err(Error::new(ErrorKind::Internal, text).because(error))
            }
        }
    }
}
