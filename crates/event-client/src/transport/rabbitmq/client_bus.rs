//! Messages between the connections of one namespace: queries and commands to all, answers, and frames of replies.
//!
//! Each connection that consumes or calls has an inbox, an exclusive queue. The broker does not store messages to
//! inboxes. A second queue, the roster, has no messages, but the owner of every inbox consumes from it: its consumer
//! count is the number of answers that a query will get.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, ExchangeKind};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{Backoff, COMMAND, Link, command};
use super::declare::{DURABLE, Declarer};
use super::error::amqp;
use super::group::Command;
use super::names::Names;
use super::requests::Calls;
use super::serve::Served;
use crate::error::{Error, ErrorKind, Result};
use crate::supervise;

/// How long members may take to answer a query.
const ANSWERED: Duration = Duration::from_secs(1);

/// A query or command to every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ask {
    /// Report the messages that you hold.
    Status,
    /// Discard the messages of this group, because the group was moved.
    GiveUp(String),
    /// End the members of this group, because the group is deleted.
    End(String),
    /// A connection publishes with delay.
    Delays,
}

/// The messages that one subscription holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Holding {
    pub(super) group: String,
    /// The subscription receives new messages.
    pub(super) live: bool,
    /// Delivered to consumers, or settled and not yet acknowledged to the broker.
    pub(super) in_flight: u64,
    /// Fetched, but waiting behind other messages of their key.
    pub(super) held: u64,
    /// Waiting in this member for a retry.
    pub(super) retrying: u64,
    /// Publication time of the oldest message, in Unix milliseconds.
    pub(super) oldest: Option<i64>,
    /// Number of messages that it ever received: distinguishes two status reports.
    pub(super) seen: u64,
}

#[derive(Serialize, Deserialize)]
struct Question {
    ask: Ask,
    to: String,
    number: u64,
}

/// The inbox of this connection, and its open queries, members, calls and requests.
#[derive(Debug)]
pub(super) struct ClientBus {
    names: Names,
    consume: Arc<Link>,
    publish: Arc<Link>,
    declarer: Arc<Declarer>,
    closed: CancellationToken,
    /// The channel for sending.
    sender: tokio::sync::Mutex<Option<Channel>>,
    inbox: tokio::sync::Mutex<Option<Inbox>>,
    numbers: AtomicU64,
    questions: Mutex<HashMap<u64, mpsc::UnboundedSender<Vec<Holding>>>>,
    pub(super) members: Mutex<HashMap<u64, (String, mpsc::UnboundedSender<Command>)>>,
    pub(super) calls: Calls,
    pub(super) served: Served,
    /// Notified when a connection publishes with delay.
    pub(super) delays: tokio::sync::Notify,
}

#[derive(Clone, Debug)]
struct Inbox {
    name: ShortString,
    broken: CancellationToken,
}

impl ClientBus {
    pub(super) fn new(
        names: Names,
        consume: Arc<Link>,
        publish: Arc<Link>,
        declarer: Arc<Declarer>,
        closed: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            names,
            consume,
            publish,
            declarer,
            closed,
            sender: tokio::sync::Mutex::default(),
            inbox: tokio::sync::Mutex::default(),
            numbers: AtomicU64::new(1),
            questions: Mutex::default(),
            members: Mutex::default(),
            calls: Calls::default(),
            served: Served::default(),
            delays: tokio::sync::Notify::new(),
        })
    }

    /// Returns a number that is unique in this connection.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Returns the inbox's name; creates the inbox if there is none.
    pub(super) async fn inbox(self: &Arc<Self>) -> Result<ShortString> {
        let mut kept = self.inbox.lock().await;
        if let Some(inbox) = kept.as_ref().filter(|inbox| !inbox.broken.is_cancelled()) {
            return Ok(inbox.name.clone());
        }
        let name = self.names.inbox(&crate::transport::consumer_name());
        let consumers = self.open(&name).await?;
        let inbox = Inbox { name: name.clone(), broken: CancellationToken::new() };
        *kept = Some(inbox.clone());
        let (client_bus, died) = (self.clone(), self.consume.closed.clone());
        tokio::spawn(supervise::run("rabbitmq inbox", client_bus.listen(inbox, consumers), move || {
            died.cancel()
        }));
        Ok(name)
    }

    async fn open(&self, name: &ShortString) -> Result<(Channel, Consumer, Consumer)> {
        self.declarer.exchange(self.names.sys(), ExchangeKind::Fanout).await?;
        let channel = self.consume.channel().await?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, durable: false, ..DURABLE };
        let table = FieldTable::default;
        command("make an inbox", channel.queue_declare(name.clone(), exclusive, table())).await?;
        let bind = channel.queue_bind(
            name.clone(),
            self.names.sys(),
            "".into(),
            QueueBindOptions::default(),
            table(),
        );
        command("bind an inbox", bind).await?;
        let shared = QueueDeclareOptions { auto_delete: true, ..DURABLE };
        command("make the roster", channel.queue_declare(self.names.roster(), shared, table())).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let inbox = channel.basic_consume(name.clone(), "inbox".into(), options, table());
        let inbox = command("consume an inbox", inbox).await?;
        let roster = channel.basic_consume(self.names.roster(), "roster".into(), options, table());
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
                    () = self.closed.cancelled() => {
                        let _ = channel.close(200, "closed".into()).await;
                        inbox.broken.cancel();
                        self.calls.end_all();
                        return;
                    }
                };
                let Some(Ok(delivery)) = next else { break };
                self.take(delivery);
            }
            // Responders do not know the name of the next inbox, so no answer can arrive for the open calls.
            inbox.broken.cancel();
            self.calls.end_all();
            let mut backoff = Backoff::default();
            loop {
                if self.closed.is_cancelled() {
                    return;
                }
                let mut kept = self.inbox.lock().await;
                if kept.as_ref().is_some_and(|kept| !kept.broken.is_cancelled()) {
                    return; // another task has already opened one
                }
                let name = self.names.inbox(&crate::transport::consumer_name());
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

    fn take(self: &Arc<Self>, delivery: Delivery) {
        let kind = delivery.properties.kind().as_ref().map_or("", |kind| kind.as_str()).to_owned();
        match kind.as_str() {
            "ask" => {
                if let Ok(question) = serde_json::from_slice::<Question>(&delivery.data) {
                    tokio::spawn(self.clone().answer(question));
                }
            }
            "answer" => {
                let number = number_of(&delivery.properties);
                if let (Some(number), Ok(holdings)) = (number, serde_json::from_slice(&delivery.data))
                    && let Some(sender) = self.questions.lock().expect("not poisoned").get(&number)
                {
                    let _ = sender.send(holdings);
                }
            }
            "frame" | "taken" | "abandoned" => self.calls.take(&kind, delivery),
            "gone" | "more" => self.served.take(&kind, &delivery),
            _ => {}
        }
    }

    async fn answer(self: Arc<Self>, question: Question) {
        let members: Vec<_> = self.members.lock().expect("not poisoned").values().cloned().collect();
        let mut answers = Vec::new();
        for (group, member) in members {
            let (answer, told) = oneshot::channel();
            let command = match &question.ask {
                Ask::Status => Command::Status(answer),
                Ask::GiveUp(moved) if *moved == group => Command::GiveUp(answer),
                Ask::End(ended) if *ended == group => Command::End(answer),
                _ => continue,
            };
            if member.send(command).is_ok() {
                answers.push(told);
            }
        }
        if question.ask == Ask::Delays {
            self.delays.notify_one();
        }
        let holdings: Vec<Holding> = join_all(answers).await.into_iter().flatten().collect();
        let properties = BasicProperties::default()
            .with_type("answer".into())
            .with_correlation_id(question.number.to_string().into());
        let bytes = serde_json::to_vec(&holdings).expect("plain data");
        let _ = self.tell(question.to.into(), properties, &bytes).await;
    }

    /// Sends a query to all connections and waits for all answers, at most [`ANSWERED`].
    pub(super) async fn ask(self: &Arc<Self>, ask: Ask) -> Result<Vec<Holding>> {
        let to = self.inbox().await?.to_string();
        let number = self.number();
        let (sender, mut answers) = mpsc::unbounded_channel();
        self.questions.lock().expect("not poisoned").insert(number, sender);
        let result = async {
            let peers = self.declarer.consumers(self.names.roster()).await?;
            let question = Question { ask, to, number };
            let properties = BasicProperties::default().with_type("ask".into());
            let bytes = serde_json::to_vec(&question).expect("plain data");
            self.send(self.names.sys(), "".into(), properties, &bytes).await?;
            let end = Instant::now() + ANSWERED;
            let mut all = Vec::new();
            for _ in 0..peers {
                match timeout_at(end, answers.recv()).await {
                    Ok(Some(holdings)) => all.extend(holdings),
                    _ => {
                        tracing::debug!("a connected process does not answer; its messages are not counted");
                        break;
                    }
                }
            }
            Ok(all)
        };
        let result = result.await;
        self.questions.lock().expect("not poisoned").remove(&number);
        result
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
                    let channel = self.publish.confirming().await?;
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
            Err(_) => Err(self.publish.blocked().unwrap_or_else(|| super::error::timeout("send"))),
        }
    }
}

impl ClientBus {
    /// Whether the broker has no queue of this name.
    pub(super) async fn is_gone(&self, queue: &ShortString) -> bool {
        matches!(self.declarer.counts(queue.clone()).await, Ok(None))
    }

    /// Waits, within a time limit, until no call and no request of this connection is open.
    pub(super) async fn calm(&self) {
        let end = Instant::now() + ANSWERED * 3;
        while !(self.calls.is_empty() && self.served.is_empty()) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Handles a message that no queue took: its receiver has ended.
    fn returned(&self, queue: &ShortString, properties: &BasicProperties) {
        match (properties.kind().as_ref().map(ShortString::as_str), number_of(properties)) {
            (Some("request"), Some(number)) => self.calls.nobody(number),
            (Some("frame" | "taken" | "abandoned"), _) => self.served.lost(queue.as_str()),
            (Some("more" | "gone"), _) => self.calls.lost(queue.as_str()),
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
