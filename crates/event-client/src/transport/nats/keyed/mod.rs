//! Order per key over many processes: one member of a keyed group leads, the others stand by.
//!
//! A consumer that is acknowledged message by message cannot keep the order of keys: what was handed to a process that
//! died, or was lost with a connection, comes again behind what came later, and the server takes acknowledgements from
//! whoever was overtaken. So the leader reads each stream from where the group is, and itself writes down how far that
//! is, in one record for the whole group (`checkpoint.rs`):
//!
//! - **The record is the lease.** It is written with the sequence of its last writing as the condition. Whoever was
//!   overtaken is refused from then on: nothing that a frozen process does when it wakes up settles anything.
//! - **First written, then handed out.** An attempt stands in the record before a handler sees the message, and the
//!   next message of a key is handed out only when the settlement of the last one is written. One writing takes along
//!   all that has gathered since the one before.
//! - **By the clock.** A leader that could not write for a lease hands out nothing, and what waits in its queue is not
//!   given to a handler; who stands by takes over when the record did not change for a lease by its own clock. No clocks
//!   are compared.
//! - **Nothing to be redelivered.** After a take-over, what is open is fetched by its place in the stream, then
//!   reading goes on behind it. A lost connection, a restarted server or a gap in what arrives only makes a new
//!   passing consumer (`reader.rs`).

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
mod reader;

pub(super) use checkpoint::Mark;
pub(super) use reader::REPLAYS;

/// A subscription of a keyed group, as its deliveries and its connection see it; the rest is a task of its own.
#[derive(Debug)]
pub(super) struct KeyedMember {
    connection: Arc<Connection>,
    group: Group,
    commands: mpsc::UnboundedSender<Command>,
    /// What it leads is its own until then.
    until: Mutex<Instant>,
    /// Deliveries with consumers.
    out: AtomicU64,
    /// It takes part in the group's work.
    live: AtomicBool,
    /// Told to hand back everything.
    closing: watch::Sender<bool>,
    /// The task has ended.
    ended: watch::Sender<bool>,
}

/// What the task is told.
enum Command {
    Settle(Token, Settlement, Answer<()>),
    Renew(Token, Answer<()>),
}

/// Starts a member.
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

    /// By the clock: a process that stood still must not begin what another may have begun meanwhile.
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
