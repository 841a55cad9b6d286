//! One member of a group: a task that owns a channel and the messages that were fetched on it, and opens another channel
//! when the channel is lost.
//!
//! ```text
//!  broker ─▶ session ─▶ deliveries ─▶ feed (consumers)
//!                │           ▲  │
//!          acks ◀┴───────────┼──┘ settlements, copies, journal
//!            │               └─── commands
//!            ▼
//!          broker
//! ```
//!
//! A delivered message belongs to the member as long as the channel is open: the broker keeps no lease. A lease starts
//! when the subscription was dropped and the delivery is not settled. A process that dies loses its channel, and the
//! broker delivers all of its messages to other members.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::client::Client;
use super::connection::RETRY;
use super::deliveries::Deliveries;
use super::error::amqp;
use super::group::Groups;
use super::handshake::Version;
use super::members::Entry;
use super::queries::Holding;
use super::session::Session;
use super::settle::Command;
use event_transport::Subscribe;
use event_transport::backoff::Backoff;
use event_transport::delivery::{Settlement, lease_lost};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;
use event_transport::subscription::{Feed, Health};

/// Maximum number of settlements that are handled before acknowledgements are written.
const BATCH: usize = 256;
/// Maximum number of messages that wait to be acknowledged while there is other work.
const BUNDLE: usize = 64;
/// How long a closing member may take to give back its messages.
const GOODBYE: Duration = Duration::from_secs(3);

/// One member of a group.
pub(super) struct Member {
    pub(super) client: Arc<Client>,
    pub(super) groups: Arc<Groups>,
    pub(super) group: Group,
    pub(super) spec: Subscribe,
    pub(super) feed: Feed,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) deliveries: Deliveries,
    /// The subscription was dropped.
    pub(super) gone: bool,
    /// Removes the member from the table of members at its end.
    pub(super) _entry: Entry,
}

/// Status queries that wait until all deliveries that are on their way have arrived.
type Fences = FuturesUnordered<BoxFuture<'static, oneshot::Sender<Holding>>>;

/// The health of a member with an open channel: without bindings its queue stays empty, although it is read.
fn healthy(bindings: &Option<String>) -> Health {
    bindings.clone().map_or(Health::Live, Health::Rebuilding)
}

impl Member {
    fn prefetch(&self) -> u16 {
        let max_in_flight = self.spec.max_in_flight.max(1);
        let most =
            if self.spec.keyed { max_in_flight + self.client.config.keyed_backlog } else { max_in_flight };
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    /// Starts to consume.
    pub(super) fn open(&self) -> impl Future<Output = Result<Session>> + Send + use<> {
        let (client, group, prefetch) = (self.client.clone(), self.group.clone(), self.prefetch());
        async move { Session::open(client, &group, prefetch).await }
    }

    /// Opens a new channel; `None` when the group has been deleted.
    async fn reopen(&mut self) -> Result<Option<Session>> {
        match self.open().await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened.map(Some),
        }
        if self.groups.recover(&self.group, &self.spec).await? {
            self.open().await.map(Some)
        } else {
            Ok(None)
        }
    }

    pub(super) async fn run(mut self, session: Session) {
        let mut session = Some(session);
        let mut backoff = RETRY;
        loop {
            let Some(open) = session.take() else {
                if self.deliveries.is_stopping() || self.over() {
                    break;
                }
                match self.reopen().await {
                    Ok(Some(open)) => {
                        tracing::info!(group = %self.group, "the subscription is live again");
                        backoff = RETRY;
                        session = Some(open);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if backoff.tries() == 0 {
                            tracing::warn!(%error, group = %self.group, "the subscription is being rebuilt");
                        }
                        self.feed.report(Health::Rebuilding(error.to_string()));
                        self.pause(&mut backoff).await;
                    }
                }
                continue;
            };
            match self.work(open).await {
                Ok(()) => break,
                Err(error) => {
                    self.feed.report(Health::Rebuilding(error.to_string()));
                    tracing::debug!(%error, group = %self.group, "a subscription lost its channel");
                    self.deliveries.forget();
                }
            }
        }
        // Answers commands that arrived while the last channel was being closed.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.refuse(command);
        }
    }

    fn over(&self) -> bool {
        self.feed.stopped().is_cancelled() || self.client.closing.is_cancelled()
    }

    /// Waits before the next try; settlements that arrive meanwhile are refused as too late.
    async fn pause(&mut self, backoff: &mut Backoff) {
        let over = self.feed.stopped().clone();
        let closing = self.client.closing.clone();
        let pause = backoff.pause();
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = over.cancelled() => return,
                () = closing.cancelled() => return,
                Some(command) = self.commands.recv() => self.refuse(command),
            }
        }
    }

    /// Answers a command for which there is no channel.
    fn refuse(&self, command: Command) {
        match command {
            Command::Settle(_, Settlement::Release | Settlement::Defer { .. }, answer) => {
                drop(answer.send(Ok(())))
            }
            Command::Settle(_, _, answer) | Command::Progress(_, answer) => {
                drop(answer.send(Err(lease_lost())))
            }
            Command::Status(answer) | Command::GiveUp(answer) | Command::End(answer) => {
                drop(answer.send(self.deliveries.holding()));
            }
        }
    }

    /// Consumes until the subscription ends; an error means that the channel was lost.
    async fn work(&mut self, mut session: Session) -> Result<()> {
        let mut fences = Fences::new();
        let mut batch = Vec::with_capacity(BATCH);
        // Messages are acknowledged together when this number is reached, and when there is no other work.
        let bundle = usize::from(self.prefetch()).div_ceil(4).min(BUNDLE);
        let mut exhausted = false;
        let stopped = self.feed.stopped().clone();
        let gone = self.feed.gone().clone();
        let closing = self.client.closing.clone();
        let mut bindings = self.groups.trouble();
        self.feed.report(healthy(&bindings.borrow_and_update()));
        loop {
            if let Some(tag) = session.gap() {
                return Err(session.mistrust(&self.group, tag).await);
            }
            self.deliveries.hand_out(&self.feed, &mut session.acks);
            self.deliveries.write_journal();
            if session.acks.to_tell() >= bundle {
                session.acks.flush();
            }
            let stopping = self.deliveries.is_stopping();
            let written = self.deliveries.are_over() && !session.acks.owes();
            if stopping && written && (exhausted || self.spec.keyed) {
                self.leave(&mut session).await;
                return Ok(());
            }
            let next = self.deliveries.next_time(self.gone);
            tokio::select! {
                biased;
                arrival = session.consumer.next(), if !exhausted => match arrival {
                    Some(Ok(delivery)) => {
                        self.deliveries.receive(&mut session, delivery).await;
                        // More deliveries may have arrived; the work that follows is done once for all of them.
                        self.receive_arrived(&mut session).await;
                    }
                    None if stopping => exhausted = true,
                    Some(Err(error)) => return Err(amqp(error)),
                    None => return Err(Error::new(ErrorKind::Unavailable, "the broker cancelled the consumer")),
                },
                Ok(()) = bindings.changed() => self.feed.report(healthy(&bindings.borrow_and_update())),
                () = closing.cancelled() => {
                    self.hand_back(&mut session).await;
                    return Ok(());
                }
                () = stopped.cancelled(), if !stopping => {
                    // The next owner of a keyed group must not start before all messages of this one are back.
                    if !self.spec.keyed {
                        self.stop_consuming(&mut session).await?;
                        self.deliveries.release_untaken(&mut session.acks);
                    }
                    self.deliveries.stop();
                }
                () = gone.cancelled(), if !self.gone => {
                    self.gone = true;
                    self.deliveries.start_leases();
                }
                count = self.commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    for command in batch.drain(..) {
                        if self.obey(&mut session, &mut fences, command).await? {
                            return Ok(());
                        }
                    }
                }
                Some(copied) = self.deliveries.copies.next() => {
                    self.deliveries.copied(&mut session.acks, copied).await;
                }
                Some(answer) = fences.next() => drop(answer.send(self.deliveries.holding())),
                written = session.acks.written(), if session.acks.is_writing() => written?,
                () = self.deliveries.journal.written(), if self.deliveries.journal.is_writing() => {}
                slot = self.feed.slot(), if self.deliveries.waits_for_room() => drop(slot),
                () = async { sleep_until(next.expect("checked")).await }, if next.is_some() => {
                    self.deliveries.pass(&mut session.acks).await;
                }
                () = std::future::ready(()), if !session.acks.is_writing() && session.acks.owes() => {
                    session.acks.flush();
                }
            }
        }
    }

    /// Carries out a command; returns whether the member ends.
    async fn obey(&mut self, session: &mut Session, fences: &mut Fences, command: Command) -> Result<bool> {
        match command {
            Command::Settle(token, settlement, answer) => {
                self.deliveries.settle(&mut session.acks, token, settlement, answer);
            }
            Command::Progress(token, answer) => drop(answer.send(self.deliveries.renew(token))),
            Command::Status(answer) => {
                let fence = session.fence();
                fences.push(Box::pin(async move {
                    fence.await;
                    answer
                }));
            }
            Command::GiveUp(answer) => {
                self.deliveries.give_up(&mut session.acks).await;
                session.acks.flush_all().await?;
                let _ = answer.send(self.deliveries.holding());
            }
            Command::End(answer) => {
                self.deliveries.forget();
                session.close("deleted").await;
                let _ = answer.send(self.deliveries.holding());
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn receive_arrived(&mut self, session: &mut Session) {
        while let Some(delivery) = session.arrived() {
            self.deliveries.receive(session, delivery).await;
        }
    }

    /// Cancels the consumer when the broker has no deliveries in flight to it. Deliveries that the broker sends just
    /// before it receives the cancel arrive after its answer. The client no longer accepts them then, and they would be
    /// delivered again with one attempt more. Nothing is acknowledged meanwhile, so the broker sends no more than the
    /// prefetch allows.
    async fn stop_consuming(&mut self, session: &mut Session) -> Result<()> {
        let since = Instant::now();
        // A broker that does not count returned deliveries may deliver late ones again without harm.
        while !self.client.consume.can(Version::returns_uncounted) {
            self.receive_arrived(session).await;
            if !session.may_receive(since).await? {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        session.cancel().await
    }

    /// The bus is closed: releases messages that no handler has taken; the others return to the queue unsettled.
    async fn hand_back(&mut self, session: &mut Session) {
        self.deliveries.stop();
        if !self.spec.keyed {
            let _ = self.stop_consuming(session).await;
            self.receive_arrived(session).await;
            self.deliveries.release_untaken(&mut session.acks);
            let end = Instant::now() + GOODBYE;
            while let Ok(Some(copied)) = timeout_at(end, self.deliveries.copies.next()).await {
                self.deliveries.copied(&mut session.acks, copied).await;
            }
        }
        if session.gap().is_none() {
            let _ = session.acks.flush_all().await;
        }
        self.leave(session).await;
    }

    /// Closes the channel. Messages that a keyed member still has go back to their places in the queue.
    async fn leave(&mut self, session: &mut Session) {
        self.deliveries.leave().await;
        session.leave().await;
    }
}
