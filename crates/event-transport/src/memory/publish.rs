//! Publishes a message: it is checked, and stored at once or when its delay has passed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::connection::Connection;
use super::delayed::DelayedMessage;
use super::log::weight;
use crate::Receipt;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Durability, Message, Position};

/// Stores `message` and wakes the groups and listeners that match its subject.
pub(super) fn publish(connection: &Connection, message: Message) -> Result<Receipt> {
    connection.check()?;
    check(connection, &message).map_err(|error| error.with("subject", &message.subject))?;
    let config = &connection.bus.config;
    let wall = Timestamp::now();
    // Wall-clock times become durations at once: from here on the runtime's clock counts, which tests can pause.
    let now = Instant::now();
    let reach = |at| bounds::later(now, bounds::left_until(at));
    let expires = message.expires_at.map(reach);
    let due = message.deliver_at.map(reach).filter(|at| *at > now);
    let bytes = weight(&message);

    let mut state = connection.bus.lock();
    state.advance(now);
    let dedup = message.dedup.then(|| message.id.clone());
    if let Some(id) = &dedup {
        if let Some(position) = state.dedup.find(id, now) {
            return Ok(Receipt { position, duplicate: true });
        }
        state.dedup.has_room(config)?;
    }
    if !state.log.has_room(bytes) {
        state.sweep(now);
        if !state.log.has_room(bytes) {
            let needed = state.log.needed();
            return Err(Error::new(
                ErrorKind::Full,
                "the bus in memory is full of messages that groups, delays or dead letters still need",
            )
            .with("subject", &message.subject)
            .with("messages", format!("{}/{}", needed.messages, config.max_messages))
            .with("bytes", format!("{}/{}", needed.bytes, config.max_bytes)));
        }
    }
    let message = Arc::new(message);
    let position = match due {
        Some(due) => {
            state.log.reserve(bytes);
            state.delayed.add(DelayedMessage { message, published_at: wall, expires }, due);
            state.wake_all();
            None
        }
        None => Some(Position(u128::from(state.append(message, wall, expires)))),
    };
    if let Some(id) = dedup {
        state.dedup.remember(id, position, now, config.dedup_window);
    }
    Ok(Receipt { position, duplicate: false })
}

/// Refuses a message that the bus cannot store as requested.
fn check(connection: &Connection, message: &Message) -> Result<()> {
    if message.durability > Durability::Default {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a bus in memory ends with its process and cannot promise durability; use `sqlite:PATH`",
        ));
    }
    connection.bus.capabilities.check(message)
}
