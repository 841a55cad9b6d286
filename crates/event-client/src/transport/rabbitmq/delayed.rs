//! Delayed publishes: a message passes from delay queue to delay queue, moved on by every connection with a
//! subscription.
//!
//! A delay queue passes a message whose time is over to the queue `NS.due`. Every connection with a subscription
//! consumes that queue as long as it exists: a message that is not due yet goes to the next, shorter delay queue; a due
//! message is published. Nothing is lost when no such connection exists: the messages are published when one opens.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::Semaphore;
use tokio::time::sleep_until;

use super::client_bus::Ask;
use super::codec::{self, Facts};
use super::connection::{Backoff, command};
use super::declare::{arguments, number, word};
use super::{Inner, delay_queues};
use crate::bounds;
use crate::error::Result;
use crate::message::Message;
use crate::supervise;
use crate::transport::Receipt;

/// Maximum number of messages that one connection moves at a time.
const MOVED: usize = 256;

impl Inner {
    /// Stores a message that is to be published at its time.
    pub(super) async fn publish_later(self: Arc<Self>, message: Message) -> Result<Receipt> {
        let facts = Facts { published_at: message.deliver_at, due: message.deliver_at, ..Facts::default() };
        let mut known = self.delays.lock().await;
        if !*known {
            let arguments =
                arguments([("x-queue-type", word("quorum")), ("x-delivery-limit", number(1_000_000_000))]);
            self.declarer.declare(self.names.due(), arguments).await?;
            self.declarer.settle_names(&self.names).await;
            self.client_bus.ask(Ask::Delays).await?;
            *known = true;
        }
        drop(known);
        self.wait_and_deliver(None, self.names.due(), &message, &facts).await?;
        Ok(Receipt::default())
    }

    /// Starts, once, the task that moves delayed messages.
    pub(super) fn start_mover(self: &Arc<Self>) {
        if !self.moving.swap(true, std::sync::atomic::Ordering::AcqRel) {
            let inner = self.clone();
            tokio::spawn(supervise::again("rabbitmq delays", move || inner.clone().move_on()));
        }
    }

    async fn move_on(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let result = tokio::select! {
                result = self.move_until_broken() => result,
                () = self.closing.cancelled() => return,
            };
            match result {
                // The queue does not exist until a client publishes with delay.
                Ok(false) => tokio::select! {
                    () = self.client_bus.delays.notified() => {}
                    () = self.closing.cancelled() => return,
                },
                Ok(true) => backoff.reset(),
                Err(error) => tracing::debug!(%error, "delayed messages cannot be moved on at the moment"),
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    /// Returns `false` when there is no queue to consume, `true` when consuming worked and then ended.
    async fn move_until_broken(self: &Arc<Self>) -> Result<bool> {
        if self.declarer.counts(self.names.due()).await?.is_none() {
            return Ok(false);
        }
        let channel = self.consume.channel().await?;
        let max_in_flight = u16::try_from(MOVED).unwrap_or(u16::MAX);
        command("set the credit", channel.basic_qos(max_in_flight, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(self.names.due(), "due".into(), options, FieldTable::default());
        let mut consumer = command("consume", consume).await?;
        let slots = Arc::new(Semaphore::new(MOVED));
        while let Some(Ok(delivery)) = consumer.next().await {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            let inner = self.clone();
            tokio::spawn(async move {
                let key = delivery.routing_key.clone();
                let moved = match codec::read(key.as_str(), &delivery.properties, delivery.data.into()) {
                    Ok(read) => inner.move_one(read.message, read.facts).await,
                    Err(error) => {
                        tracing::warn!(%error, "a delayed message cannot be read and is dropped");
                        Ok(())
                    }
                };
                let settled = match moved {
                    Ok(()) => delivery.acker.ack(BasicAckOptions::default()).await,
                    Err(error) => {
                        tracing::warn!(%error, "a delayed message could not be moved on; it is tried again");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        delivery.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await
                    }
                };
                drop(settled);
                drop(slot);
            });
        }
        Ok(true)
    }

    async fn move_one(self: &Arc<Self>, message: Message, facts: Facts) -> Result<()> {
        if let Some(left) = delay_queues::left(facts.due) {
            if delay_queues::tier(left).is_some() {
                return self.wait_and_deliver(None, self.names.due(), &message, &facts).await;
            }
            sleep_until(bounds::from_now(left)).await;
        }
        self.publish_now(&message).await.map(drop)
    }
}
