//! The inbox of one connection, and messages to the inboxes of others: queries and commands to all, answers, and frames
//! of replies.
//!
//! Each connection that consumes or calls has an inbox, an exclusive queue. The broker does not store messages to
//! inboxes. A second queue, the roster, has no messages, but the owner of every inbox consumes from it: its consumer
//! count is the number of answers that a query will get.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, ExchangeKind};
use smol_str::SmolStr;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calls::Calls;
use super::client::Client;
use super::connection::{COMMAND, RETRY, command};
use super::declare::DURABLE;
use super::error::amqp;
use super::queries::Queries;
use super::served::Served;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;

/// How long open calls and requests may take to end when the bus is closed.
const CALM: Duration = Duration::from_secs(3);

/// The tables into which the inbox sorts its messages.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) queries: Arc<Queries>,
    pub(super) calls: Arc<Calls>,
    pub(super) served: Arc<Served>,
}

/// The inbox of this connection, and the channel for sending.
#[derive(Debug)]
pub(super) struct Mailbox {
    client: Arc<Client>,
    routes: Routes,
    sender: Mutex<Option<Channel>>,
    inbox: Mutex<Option<Inbox>>,
    numbers: AtomicU64,
}

#[derive(Clone, Debug)]
struct Inbox {
    name: ShortString,
    broken: CancellationToken,
}

impl Mailbox {
    pub(super) fn new(client: Arc<Client>, routes: Routes) -> Self {
        Self { client, routes, sender: Mutex::default(), inbox: Mutex::default(), numbers: AtomicU64::new(1) }
    }

    /// Returns a number that is unique in this connection.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the inbox's name; creates the inbox if there is none.
    pub(super) async fn inbox(self: &Arc<Self>) -> Result<ShortString> {
        let mut kept = self.inbox.lock().await;
        if let Some(inbox) = kept.as_ref().filter(|inbox| !inbox.broken.is_cancelled()) {
            return Ok(inbox.name.clone());
        }
        let name = self.client.names.inbox(&event_transport::consumer_name());
        let consumers = self.open(&name).await?;
        let inbox = Inbox { name: name.clone(), broken: CancellationToken::new() };
        *kept = Some(inbox.clone());
        let (mailbox, died) = (self.clone(), self.client.down.clone());
        let listening = mailbox.listen(inbox, consumers);
        tokio::spawn(supervise::run("rabbitmq inbox", listening, move || died.cancel()));
        Ok(name)
    }

    async fn open(&self, name: &ShortString) -> Result<(Channel, Consumer, Consumer)> {
        self.client.declarer.exchange(self.client.names.sys(), ExchangeKind::Fanout).await?;
        let channel = self.client.consume.channel().await?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, durable: false, ..DURABLE };
        let table = FieldTable::default;
        command("make an inbox", channel.queue_declare(name.clone(), exclusive, table())).await?;
        let bind = channel.queue_bind(
            name.clone(),
            self.client.names.sys(),
            "".into(),
            QueueBindOptions::default(),
            table(),
        );
        command("bind an inbox", bind).await?;
        let shared = QueueDeclareOptions { auto_delete: true, ..DURABLE };
        command("make the roster", channel.queue_declare(self.client.names.roster(), shared, table()))
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let inbox = channel.basic_consume(name.clone(), "inbox".into(), options, table());
        let inbox = command("consume an inbox", inbox).await?;
        let roster = channel.basic_consume(self.client.names.roster(), "roster".into(), options, table());
        let roster = command("join the roster", roster).await?;
        Ok((channel, inbox, roster))
    }

    async fn listen(self: Arc<Self>, mut inbox: Inbox, mut open: (Channel, Consumer, Consumer)) {
        loop {
            let (channel, consumer, roster) = &mut open;
            loop {
                let next = tokio::select! {
                    biased;
                    next = consumer.next() => next,
                    next = roster.next() => next.filter(|_| false),
                    () = self.client.closing.cancelled() => {
                        let _ = channel.close(200, "closed".into()).await;
                        inbox.broken.cancel();
                        self.routes.calls.end_all();
                        return;
                    }
                };
                let Some(Ok(delivery)) = next else { break };
                self.take(delivery);
            }
            // Responders do not know the name of the next inbox, so no answer can arrive for the open calls.
            inbox.broken.cancel();
            self.routes.calls.end_all();
            let mut backoff = RETRY;
            loop {
                if self.client.closing.is_cancelled() {
                    return;
                }
                let mut kept = self.inbox.lock().await;
                if kept.as_ref().is_some_and(|kept| !kept.broken.is_cancelled()) {
                    return; // another task has already opened one
                }
                let name = self.client.names.inbox(&event_transport::consumer_name());
                if let Ok(made) = self.open(&name).await {
                    inbox = Inbox { name, broken: CancellationToken::new() };
                    *kept = Some(inbox.clone());
                    open = made;
                    break;
                }
                drop(kept);
                backoff.pause().await;
            }
        }
    }

    /// Passes a message of the inbox to its table.
    fn take(&self, delivery: Delivery) {
        let kind = delivery.properties.kind().as_ref().map_or("", ShortString::as_str).to_owned();
        let number = number_of(&delivery.properties);
        match (kind.as_str(), number) {
            ("ask", _) => self.routes.queries.asked(&delivery),
            ("answer", Some(number)) => self.routes.queries.answered(number, &delivery),
            ("frame" | "taken" | "abandoned", Some(number)) => {
                self.routes.calls.take(number, &kind, delivery);
            }
            ("gone" | "more", Some(number)) => self.routes.served.take(number, &kind, &delivery),
            _ => {}
        }
    }

    /// Sends to the queue of this name; returns whether the queue exists.
    pub(super) async fn tell(
        &self,
        queue: ShortString,
        properties: BasicProperties,
        payload: &[u8],
    ) -> Result<bool> {
        self.send("".into(), queue, properties, payload).await
    }

    /// Sends a message that the broker does not store; returns `false` when no queue took it. A returned message may
    /// arrive with the confirmation of another message, so it is identified by its own number.
    pub(super) async fn send(
        &self,
        exchange: ShortString,
        key: ShortString,
        properties: BasicProperties,
        payload: &[u8],
    ) -> Result<bool> {
        let channel = {
            let mut kept = self.sender.lock().await;
            match kept.as_ref().filter(|channel| channel.status().connected()) {
                Some(channel) => channel.clone(),
                None => {
                    let channel = self.client.publish.confirming().await?;
                    *kept = Some(channel.clone());
                    channel
                }
            }
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let own = (key.clone(), properties.kind().clone(), properties.correlation_id().clone());
        let sending =
            async { channel.basic_publish(exchange, key, options, payload, properties).await?.await };
        match tokio::time::timeout(COMMAND, sending).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(true),
            Ok(Ok(Confirmation::Ack(Some(returned)))) => {
                let Delivery { routing_key, properties, .. } = returned.delivery;
                let theirs = (routing_key, properties.kind().clone(), properties.correlation_id().clone());
                self.returned(&theirs.0, &properties);
                Ok(theirs != own)
            }
            Ok(Ok(_)) => Err(Error::new(ErrorKind::Unavailable, "the broker refused the message")),
            Ok(Err(error)) => Err(amqp(error)),
            Err(_) => Err(self.client.publish.blocked().unwrap_or_else(|| super::error::timeout("send"))),
        }
    }

    /// Waits, within a time limit, until no call and no request of this connection is open.
    pub(super) async fn calm(&self) {
        let end = Instant::now() + CALM;
        while !(self.routes.calls.is_empty() && self.routes.served.is_empty()) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Handles a message that no queue took: its receiver has ended.
    fn returned(&self, queue: &ShortString, properties: &BasicProperties) {
        match (properties.kind().as_ref().map(ShortString::as_str), number_of(properties)) {
            (Some("request"), Some(number)) => self.routes.calls.nobody(number),
            (Some("frame" | "taken" | "abandoned"), _) => self.routes.served.lost(queue.as_str()),
            (Some("more" | "gone"), _) => self.routes.calls.lost(queue.as_str()),
            _ => {}
        }
    }
}

pub(super) fn number_of(properties: &BasicProperties) -> Option<u64> {
    properties.correlation_id().as_ref()?.as_str().parse().ok()
}

pub(super) fn numbered(kind: &str, number: u64) -> BasicProperties {
    BasicProperties::default()
        .with_type(kind.into())
        .with_correlation_id(SmolStr::new(number.to_string()).as_str().into())
}
