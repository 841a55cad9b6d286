//! Ends a member: because its subscription stops, its bus closes, or its group was moved.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicCancelOptions;
use lapin::{Channel, Consumer};
use tokio::time::Instant;

use super::connection::command;
use super::delivery_tags::DeliveryTags;
use super::group::Command;
use super::handshake::Version;
use super::member::{End, Member};
use super::settle::lost;
use crate::delivery::Settlement;
use crate::error::{Error, ErrorKind, Result};
use crate::subscription::Health;

/// How long a closing member may take to give back its messages.
const GOODBYE: Duration = Duration::from_secs(3);
/// How long a stopping member waits for deliveries in flight.
const CALM: Duration = Duration::from_millis(300);
/// How long a channel stays open after its last acknowledgement. When some 32 acknowledgements wait for a quorum queue
/// to write them, the broker keeps further ones in the channel's process and drops them when the channel closes: their
/// messages would be delivered again.
const WRITTEN: Duration = Duration::from_millis(200);

/// The health of a member with an open channel: without bindings its queue stays empty, although it is read.
pub(super) fn healthy(bindings: &Option<String>) -> Health {
    bindings.clone().map_or(Health::Live, Health::Rebuilding)
}

impl Member {
    /// Drops the state of a lost channel: the broker delivers everything that was fetched on it again.
    pub(super) fn forget(&mut self) {
        if self.spec.keyed {
            self.note_untaken();
            self.counted.lose();
        }
        self.tags = DeliveryTags::default();
        self.gap = None;
        self.out.clear();
        self.ready.clear();
        drop(self.lanes.drain().collect::<Vec<_>>());
        self.waits.clear();
        self.copying.clear();
        self.returned.clear();
        self.told.clear();
        self.writing = None;
    }

    /// Cancels the consumer when the broker has no deliveries in flight to it. Deliveries that the broker sends just
    /// before it receives the cancel arrive after its answer. The client no longer accepts them then, and they would be
    /// delivered again with one attempt more. Nothing is acknowledged meanwhile, so the broker sends no more than the
    /// prefetch allows.
    pub(super) async fn stop_consuming(
        &mut self,
        channel: &Channel,
        name: &str,
        consumer: &mut Consumer,
    ) -> Result<()> {
        let end = Instant::now() + CALM;
        let queue = self.inner.names.group(&self.group);
        // A broker that does not count returned deliveries may deliver late ones again without harm.
        while !self.inner.consume.can(Version::returns_uncounted) {
            while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                self.receive(delivery).await;
            }
            if self.tags.unsettled() >= usize::from(self.prefetch()) || Instant::now() > end {
                break;
            }
            let ready = self.inner.declarer.counts(queue.clone()).await?.map_or(0, |counts| counts.ready);
            if ready == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        command("stop consuming", channel.basic_cancel(name.into(), BasicCancelOptions::default())).await
    }

    pub(super) fn release_untaken(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        let waits = std::mem::take(&mut self.waits);
        for item in ready.into_iter().chain(waits.into_values().map(|(item, _)| item)) {
            self.release(item);
        }
    }

    /// The group was moved: all messages of this member are void and count as settled.
    pub(super) async fn give_up(&mut self) {
        while let Some((item, answer, result)) = self.copying.next().await {
            if result.is_ok() {
                self.tags.settle(item.tag);
                self.told.extend(answer);
            }
        }
        let out = std::mem::take(&mut self.out).into_values().map(|out| out.item);
        let waits = std::mem::take(&mut self.waits).into_values().map(|(item, _)| item);
        let ready = std::mem::take(&mut self.ready);
        for item in out.chain(waits).chain(ready).chain(self.lanes.drain()) {
            self.tags.settle(item.tag);
        }
        self.counted.clear();
    }

    pub(super) fn may_leave(&self, exhausted: bool) -> bool {
        self.out.is_empty() && self.copying.is_empty() && !self.owes() && (exhausted || self.spec.keyed)
    }

    /// Closes the channel. Messages that a keyed member still has go back to their places in the queue.
    pub(super) async fn leave(&mut self, channel: &Channel) -> End {
        if self.spec.keyed {
            self.note_all().await;
        }
        if let Some(told) = self.last_told {
            tokio::time::sleep_until(told + WRITTEN).await;
        }
        let _ = command("close", channel.close(200, "left".into())).await;
        End::Over
    }

    /// Closes a channel on which a delivery is missing: the broker then delivers its unacknowledged messages again.
    pub(super) async fn mistrust(&mut self, channel: &Channel, tag: u64) -> End {
        tracing::warn!(group = %self.group, tag, "an earlier delivery did not arrive; the channel is closed");
        let _ = command("close", channel.close(200, "a delivery is missing".into())).await;
        End::Broken(Error::new(ErrorKind::Unavailable, "a delivery did not arrive"))
    }

    /// Answers a command for which there is no channel.
    pub(super) fn refuse(&mut self, command: Command) {
        match command {
            Command::Settle(_, Settlement::Release | Settlement::Defer { .. }, answer) => {
                drop(answer.send(Ok(())))
            }
            Command::Settle(_, _, answer) | Command::Progress(_, answer) => drop(answer.send(Err(lost()))),
            Command::Status(answer) | Command::GiveUp(answer) | Command::End(answer) => {
                drop(answer.send(self.holding()));
            }
        }
    }

    /// Answers commands that arrived while the last channel was being closed.
    pub(super) fn refuse_rest(&mut self) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.refuse(command);
        }
    }

    /// The bus is closed: releases messages that no handler has taken; the others return to the queue unsettled.
    pub(super) async fn hand_back(&mut self, channel: &Channel, name: &str, consumer: &mut Consumer) -> End {
        self.stopping = true;
        if !self.spec.keyed {
            let _ = self.stop_consuming(channel, name, consumer).await;
            while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
                self.receive(delivery).await;
            }
            self.release_untaken();
            let end = Instant::now() + GOODBYE;
            while let Ok(Some((item, answer, result))) =
                tokio::time::timeout_at(end, self.copying.next()).await
            {
                self.copied(channel, item, answer, result).await;
            }
        }
        if self.gap.is_none() {
            let _ = self.flush_all(channel).await;
        }
        self.leave(channel).await
    }
}
