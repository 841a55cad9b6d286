//! Acknowledgements of one channel: collects settled delivery tags and writes them in bundles, one bundle at a time.

use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::time::Instant;

use super::connection::command;
use super::delivery_tags::{Ack, DeliveryTags};
use super::settle::Asker;
use super::writing::Writing;
use event_transport::error::Result;

/// The settled messages of one channel.
pub(super) struct Acks {
    channel: Channel,
    tags: DeliveryTags,
    /// Tags of messages that return to their place in the queue.
    returned: Vec<u64>,
    /// Callers to notify after the next bundle is written.
    told: Vec<Asker>,
    /// The bundle that is being written to the connection.
    writing: Writing,
    /// When the last bundle was written.
    written_at: Option<Instant>,
}

impl Acks {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            channel,
            tags: DeliveryTags::default(),
            returned: Vec::new(),
            told: Vec::new(),
            writing: Writing::default(),
            written_at: None,
        }
    }

    /// Returns whether `tag` is the next one; see [`DeliveryTags::received`].
    #[must_use]
    pub(super) fn received(&mut self, tag: u64) -> bool {
        self.tags.received(tag)
    }

    /// Number of tags for which the broker has received no acknowledgement.
    pub(super) fn unsettled(&self) -> usize {
        self.tags.unsettled()
    }

    /// Number of settled tags that are not acknowledged to the broker.
    pub(super) fn to_tell(&self) -> usize {
        self.tags.to_tell()
    }

    /// The message is settled: acknowledges it with the next bundle, and then notifies the caller.
    pub(super) fn settle(&mut self, tag: u64, answer: Option<Asker>) {
        self.tags.settle(tag);
        self.told.extend(answer);
    }

    /// Returns the message to its place in the queue with the next bundle; not counted as an attempt by brokers that can
    /// do that.
    pub(super) fn put_back(&mut self, tag: u64) {
        self.returned.push(tag);
    }

    /// Returns the message to the broker now, counted as an attempt. It is rejected, because newer brokers do not count
    /// a `nack`.
    pub(super) async fn give_back(&mut self, tag: u64) {
        self.tags.told(tag);
        let back = self.channel.basic_reject(tag, BasicRejectOptions { requeue: true });
        let _ = command("give back", back).await;
    }

    /// Whether settlements are not yet written to the broker.
    pub(super) fn owes(&self) -> bool {
        self.is_writing() || !self.told.is_empty() || !self.returned.is_empty() || self.tags.to_tell() > 0
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_busy()
    }

    /// When the last bundle was written.
    pub(super) fn written_at(&self) -> Option<Instant> {
        self.written_at
    }

    /// Starts to write acknowledgements, one bundle at a time: settlements that arrive meanwhile go with the next
    /// bundle.
    pub(super) fn flush(&mut self) {
        if self.is_writing() || !self.owes() {
            return;
        }
        let mut acks = Vec::new();
        self.tags.flush(&mut acks);
        let returned = std::mem::take(&mut self.returned);
        returned.iter().for_each(|tag| self.tags.told(*tag));
        let (told, channel) = (std::mem::take(&mut self.told), self.channel.clone());
        self.writing.start(told, async move {
            let write = async {
                let acks = acks
                    .into_iter()
                    .map(|Ack { tag, multiple }| channel.basic_ack(tag, BasicAckOptions { multiple }));
                let requeue = BasicNackOptions { multiple: false, requeue: true };
                let nacks = returned.into_iter().map(|tag| channel.basic_nack(tag, requeue));
                tokio::try_join!(try_join_all(acks), try_join_all(nacks))
            };
            command("acknowledge", write).await.map(drop)
        });
    }

    /// Waits for the end of the write in progress: after a success the callers are notified; after an error their
    /// dropped [`Asker`]s report the loss.
    pub(super) async fn written(&mut self) -> Result<()> {
        let (told, result) = self.writing.done().await;
        if result.is_ok() {
            self.written_at = Some(Instant::now());
            told.into_iter().rev().for_each(|answer| answer.tell(Ok(())));
        }
        result
    }

    /// Writes all settlements that are not yet written to the broker.
    pub(super) async fn flush_all(&mut self) -> Result<()> {
        while self.owes() {
            self.flush();
            if self.is_writing() {
                self.written().await?;
            }
        }
        Ok(())
    }
}
