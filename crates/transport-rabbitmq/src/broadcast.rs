//! Broadcast: each subscriber has a bounded, exclusive queue, which is deleted with the subscription.
//!
//! The broker drops the oldest messages of a full queue without a notice. So dropped messages go to a second queue,
//! which is purged periodically while messages arrive: the broker returns the number of purged messages, and sends none
//! of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use super::connection::{RETRY, command};
use super::declare::{DURABLE, arguments, number, word};
use super::delayed::Delayed;
use super::mailbox::Mailbox;
use super::names::binding;
use super::{codec, delay_queues};
use event_transport::bounds;
use event_transport::delivery::{Delivery, DeliveryInfo};
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subscription::{Feed, Health, Subscription};
use event_transport::supervise;
use event_transport::{Subscribe, consumer_name};

/// Maximum number and bytes of messages that wait at the broker for a slow subscriber; the oldest are dropped.
const KEPT: u64 = 100_000;
const KEPT_BYTES: u64 = 64 * 1024 * 1024;
/// How often the dropped messages are counted while messages arrive or wait.
const COUNT: Duration = Duration::from_millis(250);

struct Open {
    channel: Channel,
    consumer: Consumer,
    /// The queue of messages that the broker dropped.
    dropped: ShortString,
}

/// Opens broadcast subscriptions.
#[derive(Debug)]
pub(super) struct Broadcasts {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    delayed: Arc<Delayed>,
}

impl Broadcasts {
    pub(super) fn new(client: Arc<Client>, mailbox: Arc<Mailbox>, delayed: Arc<Delayed>) -> Self {
        Self { client, mailbox, delayed }
    }

    pub(super) async fn subscribe(&self, spec: Subscribe) -> Result<Subscription> {
        self.client.capabilities.check_start(spec.start)?;
        self.mailbox.inbox().await?;
        let open = Open::declare(&self.client, &spec).await?;
        let (feed, subscription) = Subscription::channel(spec.max_in_flight);
        self.delayed.start_mover();
        let listening = run(self.client.clone(), spec, feed, open);
        tokio::spawn(supervise::run("rabbitmq broadcast", listening, || {}));
        Ok(subscription)
    }
}

impl Open {
    async fn declare(client: &Client, spec: &Subscribe) -> Result<Self> {
        let channel = client.consume.channel().await?;
        let name = consumer_name();
        let queue: ShortString = client.names.broadcast(&name);
        let dropped: ShortString = client.names.broadcast(&format!("{name}.dropped"));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, durable: false, ..DURABLE };
        let bounds = [
            ("x-queue-type", word("classic")),
            ("x-max-length", number(KEPT)),
            ("x-max-length-bytes", number(KEPT_BYTES)),
        ];
        // This queue has no consumer, so it exists until it is deleted, or until the connection ends.
        let kept = QueueDeclareOptions { auto_delete: false, ..options };
        let counted = arguments(bounds.clone());
        command("make a queue", channel.queue_declare(dropped.clone(), kept, counted)).await?;
        let mut arguments = arguments(bounds);
        arguments.insert("x-dead-letter-exchange".into(), word(""));
        arguments.insert("x-dead-letter-routing-key".into(), word(dropped.as_str()));
        command("make a queue", channel.queue_declare(queue.clone(), options, arguments)).await?;
        for pattern in &spec.filters {
            let bind = channel.queue_bind(
                queue.clone(),
                client.names.events(),
                binding(pattern),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            command("bind a queue", bind).await?;
        }
        let max_in_flight = u16::try_from(spec.max_in_flight.max(1)).unwrap_or(u16::MAX);
        command("set the credit", channel.basic_qos(max_in_flight, BasicQosOptions::default())).await?;
        let consume = channel.basic_consume(
            queue,
            "broadcast".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = command("consume", consume).await?;
        Ok(Open { channel, consumer, dropped })
    }
}

/// Deletes the queue of dropped messages. If that fails, it is deleted with the connection.
async fn forget(client: &Client, dropped: ShortString) {
    let Ok(channel) = client.consume.channel().await else { return };
    let delete = channel.queue_delete(dropped, QueueDeleteOptions::default());
    let _ = command("delete a queue", delete).await;
    let _ = command("close", channel.close(200, "done".into())).await;
}

/// A message to deliver, and its publication time.
struct Heard {
    message: Arc<Message>,
    published_at: Option<Timestamp>,
}

async fn run(client: Arc<Client>, spec: Subscribe, feed: Feed, open: Open) {
    let mut open = Some(open);
    let mut backoff = RETRY;
    loop {
        let Open { channel, mut consumer, dropped } = match open.take() {
            Some(open) => open,
            None => match Open::declare(&client, &spec).await {
                Ok(open) => {
                    tracing::info!(
                        "the broadcast subscription is live again; messages published meanwhile are missed"
                    );
                    backoff = RETRY;
                    open
                }
                Err(error) => {
                    if backoff.tries() == 0 {
                        tracing::warn!(%error, "the broadcast subscription is being rebuilt");
                    }
                    feed.report(Health::Rebuilding(error.to_string()));
                    tokio::select! {
                        () = backoff.pause() => continue,
                        () = feed.stopped().cancelled() => return,
                        () = client.closing.cancelled() => return,
                    }
                }
            },
        };
        feed.report(Health::Live);
        let mut ready = VecDeque::new();
        let mut early: BTreeMap<(Instant, u64), Heard> = BTreeMap::new();
        let mut count: Option<Instant> = None;
        let over = loop {
            while let Some(slot) = (!ready.is_empty()).then(|| feed.try_slot()).flatten() {
                let Heard { message, published_at } = ready.pop_front().expect("not empty");
                if message.expires_at.is_some_and(|at| at <= Timestamp::now()) {
                    continue;
                }
                let mut info = DeliveryInfo::new(1);
                info.published_at = published_at;
                feed.push(Delivery::unleased(message, info, Some(slot)));
            }
            let next = early.keys().next().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = feed.stopped().cancelled() => break true,
                () = client.closing.cancelled() => break true,
                slot = feed.slot(), if !ready.is_empty() => drop(slot),
                () = async { sleep_until(next.expect("checked")).await }, if next.is_some() => {
                    if let Some((_, heard)) = early.pop_first() {
                        ready.push_back(heard);
                    }
                }
                () = async { sleep_until(count.expect("checked")).await }, if count.is_some() => {
                    let purge = channel.queue_purge(dropped.clone(), QueuePurgeOptions::default());
                    match command("count the dropped messages", purge).await {
                        Ok(messages) => feed.missed("rabbitmq", u64::from(messages)),
                        Err(error) => {
                            feed.report(Health::Rebuilding(error.to_string()));
                            break false;
                        }
                    }
                    count = (!ready.is_empty()).then(|| Instant::now() + COUNT);
                }
                arrival = consumer.next(), if ready.is_empty() => {
                    count.get_or_insert_with(|| Instant::now() + COUNT);
                    let mut last = None;
                    let mut arrival = arrival;
                    let mut broken = false;
                    loop {
                        match arrival {
                            Some(Ok(delivery)) => {
                                last = Some(delivery.delivery_tag);
                                let key = delivery.routing_key.clone();
                                // A message that cannot be decoded is ignored.
                                if let Ok(read) = codec::read(key.as_str(), &delivery.properties, delivery.data.into()) {
                                    let heard = Heard {
                                        message: Arc::new(read.message),
                                        published_at: read.facts.published_at,
                                    };
                                    match delay_queues::left(read.facts.due) {
                                        Some(left) => {
                                            early.insert((bounds::from_now(left), delivery.delivery_tag), heard);
                                        }
                                        None => ready.push_back(heard),
                                    }
                                }
                            }
                            _ => broken = true,
                        }
                        if broken || ready.len() >= spec.max_in_flight {
                            break;
                        }
                        match consumer.next().now_or_never() {
                            Some(next) => arrival = next,
                            None => break,
                        }
                    }
                    if let Some(last) = last {
                        let ack = channel.basic_ack(last, BasicAckOptions { multiple: true });
                        broken |= command("acknowledge", ack).await.is_err();
                    }
                    if broken {
                        feed.report(Health::Rebuilding("the channel was lost".into()));
                        break false;
                    }
                }
            }
        };
        forget(&client, dropped).await;
        if over {
            let _ = command("close", channel.close(200, "left".into())).await;
            return;
        }
    }
}
