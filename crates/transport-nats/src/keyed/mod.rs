//! Order per key across many processes: one member of a keyed group leads, and the others stand by.
//!
//! A consumer with an acknowledgement per message cannot keep the order of keys: a message that was delivered to a
//! process that died, or that was lost with a connection, is delivered again after later ones, and the server accepts
//! acknowledgements from a member that was replaced. So the leader reads each stream from the group's position, and
//! stores that position itself, in one record for the whole group (`checkpoint.rs`):
//!
//! - **The record is the lease.** Each write has the sequence of the last write as its condition. A leader that was
//!   replaced is refused from then on: a process that was suspended cannot settle anything when it continues.
//! - **Written first, then delivered.** An attempt is in the record before a handler receives the message, and the
//!   next message of a key is delivered only when the settlement of the last one is written. One write contains all
//!   changes that have gathered since the one before.
//! - **Timed by each process's own clock.** A leader that could not write for a lease delivers nothing, and messages
//!   in its queue are not given to a handler. A standby member takes over when the record did not change for a lease
//!   by its own clock. Clocks of different processes are not compared.
//! - **No redelivery by the server.** After a take-over, open messages are fetched by their sequence in the stream,
//!   then reading continues after them. A lost connection, a restarted server or a gap in the received messages only
//!   requires a new ephemeral consumer (`leader/reader.rs`).

use std::sync::Arc;

use super::dead_letters::DeadLetters;
use super::group::Record;
use super::presence::Participant;
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::subscription::Subscription;
use event_transport::supervise;

mod backlog;
mod checkpoint;
mod election;
mod ephemeral;
mod leader;
mod member;
mod open;
mod unsettled;

pub(super) use checkpoint::{Mark, REPLAYS, progress};
pub(super) use election::depose;
pub(super) use unsettled::{unsettled, unsettled_replays};

/// Opens a member of a keyed group. Returns its subscription, the member, and its task.
pub(super) async fn subscribe(
    dead_letters: &Arc<DeadLetters>,
    group: Group,
    record: Record,
    max_in_flight: usize,
) -> Result<(Subscription, Arc<dyn Participant>, impl Future<Output = ()> + use<>)> {
    let (feed, subscription) = Subscription::channel(max_in_flight);
    let (member, commands) = member::KeyedMember::new(dead_letters, group);
    let task = leader::Task::open(&member, feed, record, commands).await?;
    let ended = member.clone();
    let task = supervise::run("nats keyed group", task.run(), move || ended.end());
    Ok((subscription, member, task))
}
