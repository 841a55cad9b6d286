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
//!   requires a new ephemeral consumer (`reader.rs`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::connection::Connection;
use super::error::{closed, lost};
use super::group::Record;
use super::presence::{MemberStatus, Participant};
use crate::confirm::{Answer, Confirm};
use crate::delivery::{Settle, Settlement, Token};
use crate::error::Result;
use crate::subject::Group;
use crate::subscription::Subscription;
use crate::supervise;

mod backlog;
mod checkpoint;
mod leader;
mod leadership;
mod open;

pub(super) use checkpoint::Mark;
pub(super) use open::REPLAYS;

/// The part of a keyed group's subscription that its deliveries and its connection use. A task holds the rest.
#[derive(Debug)]
pub(super) struct KeyedMember {
    connection: Arc<Connection>,
    group: Group,
    commands: mpsc::UnboundedSender<Command>,
    /// Time until which its leadership is valid.
    until: Mutex<Instant>,
    /// Number of deliveries held by consumers.
    out: AtomicU64,
    /// Whether it takes part in the group's work.
    live: AtomicBool,
    /// Set to `true` when the member has to release everything.
    closing: watch::Sender<bool>,
    /// Set to `true` when the task has ended.
    ended: watch::Sender<bool>,
}

/// A command to the task.
enum Command {
    Settle(Token, Settlement, Answer<()>),
    Renew(Token, Answer<()>),
}

/// Starts a member of a keyed group.
pub(super) async fn subscribe(
    connection: &Arc<Connection>,
    group: Group,
    record: Record,
    max_in_flight: usize,
) -> Result<Subscription> {
    let (feed, subscription) = Subscription::channel(max_in_flight);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let member = Arc::new(KeyedMember {
        connection: connection.clone(),
        group,
        commands,
        until: Mutex::new(Instant::now()),
        out: AtomicU64::new(0),
        live: AtomicBool::new(true),
        closing: watch::Sender::new(false),
        ended: watch::Sender::new(false),
    });
    let task = leader::Leader::open(&member, feed, record, command_receiver).await?;
    let ended = member.clone();
    let participant: Arc<dyn Participant> = member;
    connection.add_member(&participant);
    connection.tasks.spawn(async move {
        supervise::run("nats keyed group", task.run(), || {
            ended.live.store(false, Ordering::Release);
            ended.ended.send_replace(true);
        })
        .await;
        drop(participant);
    });
    Ok(subscription)
}

impl KeyedMember {
    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn command(&self, command: impl FnOnce(Answer<()>) -> Command) -> Confirm<()> {
        if self.connection.closed.is_cancelled() {
            return Confirm::ready(Err(closed().during("settle")));
        }
        let (answer, confirm) = Confirm::channel();
        match self.commands.send(command(answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lost())),
        }
    }
}

impl Settle for KeyedMember {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        self.command(|answer| Command::Settle(token, settlement, answer))
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        self.command(|answer| Command::Renew(token, answer))
    }

    /// Checks the clock: a process that was suspended must not begin work that another member may have begun.
    fn is_ours(&self, _: Token) -> bool {
        Instant::now() < self.until()
    }
}

impl Participant for KeyedMember {
    fn status(&self) -> Option<MemberStatus> {
        self.live.load(Ordering::Acquire).then(|| MemberStatus {
            group: self.group.as_str().into(),
            out: self.out.load(Ordering::Acquire),
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.send_replace(true);
            let mut ended = self.ended.subscribe();
            let _ = tokio::time::timeout(Duration::from_secs(5), ended.wait_for(|ended| *ended)).await;
        })
    }
}
