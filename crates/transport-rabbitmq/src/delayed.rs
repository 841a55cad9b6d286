//! Delayed publishes: a message passes from delay queue to delay queue, moved on by every connection with a
//! subscription.
//!
//! A delay queue passes a message whose time is over to the queue `NS.due`. Every connection with a subscription
//! consumes that queue as long as it exists: a message that is not due yet goes to the next, shorter delay queue; a due
//! message is published. Nothing is lost when no such connection exists: the messages are published when one opens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::sleep_until;

use super::client::Client;
use super::codec::{self, Facts};
use super::connection::{RETRY, command};
use super::declare::{arguments, number, word};
use super::delay_queues::{self, DelayQueues};
use super::members::Members;
use super::publish::Publisher;
use super::queries::Ask;
use event_transport::Receipt;
use event_transport::bounds;
use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::supervise;

/// Maximum number of messages that one connection moves at a time.
const MOVED: usize = 256;

/// Delayed publishes of one connection.
#[derive(Debug)]
pub(super) struct Delayed {
    client: Arc<Client>,
    members: Arc<Members>,
    delay_queues: Arc<DelayQueues>,
    publisher: Arc<Publisher>,
    /// Whether the queue `NS.due` exists.
    declared: Mutex<bool>,
    moving: AtomicBool,
}

impl Delayed {
    pub(super) fn new(
        client: Arc<Client>,
        members: Arc<Members>,
        delay_queues: Arc<DelayQueues>,
        publisher: Arc<Publisher>,
    ) -> Self {
        Self {
            client,
            members,
            delay_queues,
            publisher,
            declared: Mutex::default(),
            moving: AtomicBool::new(false),
        }
    }

    /// Stores, in a task of its own, a message that is to be published at its time.
    pub(super) fn publish(self: &Arc<Self>, message: Message) -> Confirm<Receipt> {
        let (answer, confirm) = Confirm::channel();
        let this = self.clone();
        tokio::spawn(async move {
            let result = this.store(message).await;
            let _ = answer.send(result.map_err(|error| error.during("publish")));
        });
        confirm
    }

    async fn store(&self, message: Message) -> Result<Receipt> {
        let facts = Facts { published_at: message.deliver_at, due: message.deliver_at, ..Facts::default() };
        let mut declared = self.declared.lock().await;
        if !*declared {
            let arguments =
                arguments([("x-queue-type", word("quorum")), ("x-delivery-limit", number(1_000_000_000))]);
            self.client.declarer.declare(self.client.names.due(), arguments).await?;
            self.client.declarer.settle_names().await;
            self.members.ask(Ask::Delays).await?;
            *declared = true;
        }
        drop(declared);
        self.delay_queues.deliver(None, self.client.names.due(), &message, &facts).await?;
        Ok(Receipt::default())
    }

    /// Starts, once, the task that moves delayed messages.
    pub(super) fn start_mover(self: &Arc<Self>) {
        if !self.moving.swap(true, Ordering::AcqRel) {
            let this = self.clone();
            tokio::spawn(supervise::again("rabbitmq delays", move || this.clone().move_on()));
        }
    }

    async fn move_on(self: Arc<Self>) {
        let mut backoff = RETRY;
        loop {
            let result = tokio::select! {
                result = self.move_until_broken() => result,
                () = self.client.closing.cancelled() => return,
            };
            match result {
                // The queue does not exist until a client publishes with delay.
                Ok(false) => tokio::select! {
                    () = self.members.delays.notified() => {}
                    () = self.client.closing.cancelled() => return,
                },
                Ok(true) => backoff = RETRY,
                Err(error) => tracing::debug!(%error, "delayed messages cannot be moved on at the moment"),
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.client.closing.cancelled() => return,
            }
        }
    }

    /// Returns `false` when there is no queue to consume, `true` when consuming worked and then ended.
    async fn move_until_broken(self: &Arc<Self>) -> Result<bool> {
        if self.client.declarer.counts(self.client.names.due()).await?.is_none() {
            return Ok(false);
        }
        let channel = self.client.consume.channel().await?;
        let max_in_flight = u16::try_from(MOVED).unwrap_or(u16::MAX);
        command("set the credit", channel.basic_qos(max_in_flight, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(self.client.names.due(), "due".into(), options, FieldTable::default());
        let mut consumer = command("consume", consume).await?;
        let slots = Arc::new(Semaphore::new(MOVED));
        while let Some(Ok(delivery)) = consumer.next().await {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            let this = self.clone();
            tokio::spawn(async move {
                let key = delivery.routing_key.clone();
                let moved = match codec::read(key.as_str(), &delivery.properties, delivery.data.into()) {
                    Ok(read) => this.move_one(read.message, read.facts).await,
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

    async fn move_one(&self, message: Message, facts: Facts) -> Result<()> {
        if let Some(left) = delay_queues::left(facts.due) {
            if delay_queues::tier(left).is_some() {
                return self.delay_queues.deliver(None, self.client.names.due(), &message, &facts).await;
            }
            sleep_until(bounds::from_now(left)).await;
        }
        self.publisher.publish(&message).await.map(drop)
    }
}
