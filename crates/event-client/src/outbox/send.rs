//! Publishes one batch through a sliding window in which no two events of one key are in flight together.

use std::collections::{HashSet, VecDeque};

use smol_str::SmolStr;
use tokio::sync::OwnedSemaphorePermit;

use super::{Row, stage};
use crate::bus::Bus;
use crate::confirm::Confirm;
use crate::transport::Receipt;
use event_transport::error::{Error, ErrorKind};

/// The result of a batch.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) published: Vec<i64>,
    /// Rows that can never be published.
    pub(super) refused: Vec<Refused>,
    /// The error that stopped the batch; the remaining rows are retried later.
    pub(super) failed: Option<Error>,
}

/// A row that the bus refuses.
pub(super) struct Refused {
    pub(super) staged: Staged,
    pub(super) error: Error,
}

/// The part of a row that is kept until it is published: enough to find the row and to name the event in a log line.
pub(super) struct Staged {
    pub(super) position: i64,
    pub(super) id: String,
    pub(super) headers: String,
}

/// Sends rows through a sliding window. A row waits until the previous row of the same key is confirmed, so that a
/// failure between the two cannot reverse their order.
pub(super) async fn send(bus: &Bus, rows: Vec<Row>, dedup: bool) -> Sent {
    let mut sent = Sent::default();
    let mut window = Window::default();
    for row in rows {
        while row.aggregateid.as_deref().is_some_and(|key| window.keys.contains(key)) {
            window.settle_oldest(&mut sent).await;
        }
        // After a failure no further row is sent; the rows in flight are still awaited.
        if sent.failed.is_some() {
            break;
        }
        let read = stage::message(&row, bus.settings());
        let Row { position, id, headers, aggregateid, .. } = row;
        let staged = Staged { position, id, headers };
        let mut message = match read {
            Ok(message) => message,
            Err(error) => {
                sent.refused.push(Refused { staged, error });
                continue;
            }
        };
        message.dedup = dedup;
        if bus.is_window_full() {
            while !window.waiting.is_empty() {
                window.settle_oldest(&mut sent).await;
            }
        }
        match bus.send(message).await {
            Ok((slot, confirm)) => window.push(staged, aggregateid, slot, confirm),
            Err(error) => sent.failure(staged, error),
        }
    }
    while !window.waiting.is_empty() {
        window.settle_oldest(&mut sent).await;
    }
    sent
}

impl Sent {
    fn failure(&mut self, staged: Staged, error: Error) {
        match error.kind() {
            ErrorKind::TooLarge | ErrorKind::InvalidName | ErrorKind::Unsupported | ErrorKind::Encode => {
                self.refused.push(Refused { staged, error });
            }
            _ => self.failed = self.failed.take().or(Some(error)),
        }
    }
}

#[derive(Default)]
struct Window {
    waiting: VecDeque<(Staged, Option<SmolStr>, OwnedSemaphorePermit, Confirm<Receipt>)>,
    keys: HashSet<SmolStr>,
}

impl Window {
    fn push(
        &mut self,
        staged: Staged,
        key: Option<String>,
        slot: OwnedSemaphorePermit,
        confirm: Confirm<Receipt>,
    ) {
        let key = key.map(SmolStr::from);
        self.keys.extend(key.clone());
        self.waiting.push_back((staged, key, slot, confirm));
    }

    async fn settle_oldest(&mut self, sent: &mut Sent) {
        let Some((staged, key, _slot, confirm)) = self.waiting.pop_front() else { return };
        match confirm.await {
            Ok(_) => sent.published.push(staged.position),
            Err(error) => sent.failure(staged, error),
        }
        if let Some(key) = key {
            self.keys.remove(&key);
        }
    }
}
