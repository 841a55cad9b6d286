//! A member of a keyed group, as its deliveries and its connection use it. The task in `leader/` holds the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::client::Client;
use crate::dead_letters::DeadLetters;
use crate::error::closed;
use crate::presence::{MemberStatus, Participant};
use event_transport::confirm::{Answer, Confirm};
use event_transport::delivery::{Settle, Settlement, Token, lease_lost};
use event_transport::subject::Group;
use event_transport::sync::lock;

/// The part of a keyed group's subscription that its deliveries and its connection use.
pub(super) struct KeyedMember {
    pub(super) client: Arc<Client>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) group: Group,
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
pub(super) enum Command {
    Settle(Token, Settlement, Answer<()>),
    Renew(Token, Answer<()>),
}

impl KeyedMember {
    /// Returns a new member, and the commands to its task.
    pub(super) fn new(
        dead_letters: &Arc<DeadLetters>,
        group: Group,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let member = Self {
            client: dead_letters.client.clone(),
            dead_letters: dead_letters.clone(),
            group,
            commands,
            until: Mutex::new(Instant::now()),
            out: AtomicU64::new(0),
            live: AtomicBool::new(true),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        };
        (Arc::new(member), command_receiver)
    }

    /// Returns the time until which its leadership is valid.
    pub(super) fn until(&self) -> Instant {
        *lock(&self.until)
    }

    pub(super) fn set_until(&self, until: Instant) {
        *lock(&self.until) = until;
    }

    /// Returns a receiver of `true` when the member has to release everything.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Counts a delivery that a consumer holds from now on.
    pub(super) fn count_delivered(&self) {
        self.out.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a delivery that its consumer no longer holds.
    pub(super) fn count_put_down(&self) {
        self.out.fetch_sub(1, Ordering::AcqRel);
    }

    /// Sets the number of deliveries held by consumers to 0, because none of them can be settled any more.
    pub(super) fn count_none(&self) {
        self.out.store(0, Ordering::Release);
    }

    /// Takes no part in the group's work from now on.
    pub(super) fn leave(&self) {
        self.live.store(false, Ordering::Release);
    }

    /// Reports that the task has ended.
    pub(super) fn end(&self) {
        self.leave();
        self.ended.send_replace(true);
    }

    fn command(&self, command: impl FnOnce(Answer<()>) -> Command) -> Confirm<()> {
        if self.client.closed.is_cancelled() {
            return Confirm::ready(Err(closed().during("settle")));
        }
        let (answer, confirm) = Confirm::channel();
        match self.commands.send(command(answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lease_lost())),
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
