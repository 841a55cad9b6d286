//! The message ids seen within the dedup window.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::config::MemoryConfig;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{MessageId, Position};

#[derive(Debug, Default)]
pub(super) struct Dedup {
    seen: HashMap<MessageId, Option<Position>>,
    ends: VecDeque<(Instant, MessageId)>,
}

impl Dedup {
    /// Returns the position of the message with this id, if it was published within the window. A delayed message has
    /// none.
    pub(super) fn find(&mut self, id: &MessageId, now: Instant) -> Option<Option<Position>> {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, id)) = self.ends.pop_front() {
                self.seen.remove(&id);
            }
        }
        self.seen.get(id).copied()
    }

    /// Returns an error when no further id can be remembered.
    pub(super) fn has_room(&self, config: &MemoryConfig) -> Result<()> {
        if self.seen.len() < config.max_messages {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Full,
            "the bus in memory has reached its limit of dedup ids; publish fewer messages within the dedup window",
        )
        .with("max_messages", config.max_messages)
        .with("dedup_window", format!("{:?}", config.dedup_window)))
    }

    pub(super) fn remember(
        &mut self,
        id: MessageId,
        position: Option<Position>,
        now: Instant,
        window: Duration,
    ) {
        self.ends.push_back((bounds::later(now, window), id.clone()));
        self.seen.insert(id, position);
    }
}
