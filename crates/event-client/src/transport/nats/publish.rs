//! Publishes messages: ensures that a topic's stream exists before its first message, then sends each one directly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::NatsTransport;
use super::batch::{self, Batches, Item};
use super::codec;
use super::connection::Connection;
use super::pub_ack::PendingPublish;
use super::streams::Kind;
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::transport::{Receipt, headers};

/// Pause before a message for which there was no responder is sent again.
const PAUSE: Duration = Duration::from_millis(200);

/// Streams that this connection knows to exist.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<HashMap<SmolStr, StreamState>>);

enum StreamState {
    /// The stream exists; the value tells whether it accepts batches.
    Ready(bool),
    /// The stream is being checked or created; these messages wait for it, in order.
    Opening(Vec<(Message, PendingPublish, Instant)>),
}

impl std::fmt::Debug for StreamState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Ready(_)) { "ready" } else { "opening" })
    }
}

impl Topics {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SmolStr, StreamState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all entries; waiting publishers receive an error that the connection is closed.
    pub(super) fn abandon(&self) {
        self.lock().clear();
    }

    /// Returns whether the topic's stream is known to exist.
    pub(super) fn is_ready(&self, topic: &str) -> bool {
        matches!(self.lock().get(topic), Some(StreamState::Ready(_)))
    }

    pub(super) fn ready(&self, topic: &str, batches: bool) {
        self.lock().entry(topic.into()).or_insert(StreamState::Ready(batches));
    }
}

impl NatsTransport {
    pub(super) fn send(&self, message: Message) -> Confirm<Receipt> {
        let connection = &self.connection;
        if connection.outbound.is_closing() {
            return Confirm::ready(Err(super::error::closed()));
        }
        if let Err(error) = self.capabilities.check(&message) {
            return Confirm::ready(Err(error));
        }
        let (answer, confirm) = match connection.unconfirmed.reserve(&message) {
            Ok(entered) => entered,
            Err(error) => return Confirm::ready(Err(error)),
        };
        let deadline = Instant::now() + connection.config.publish_timeout;
        if message.deliver_at.is_some_and(|at| at > Timestamp::now()) {
            super::delayed::publish(connection, message, answer);
            return confirm;
        }
        let mut topics = connection.topics_seen.lock();
        match topics.get_mut(message.subject.topic()) {
            Some(StreamState::Ready(batches)) => {
                let batches = *batches;
                drop(topics);
                dispatch(connection, message, answer, deadline, batches);
            }
            Some(StreamState::Opening(line)) => line.push((message, answer, deadline)),
            None => {
                let topic = SmolStr::new(message.subject.topic());
                topics.insert(topic.clone(), StreamState::Opening(vec![(message, answer, deadline)]));
                drop(topics);
                let opened = connection.clone();
                connection.vital("nats topic", async move { open(&opened, topic, deadline).await });
            }
        }
        confirm
    }
}

/// Ensures that the stream exists, then sends the messages that waited for it.
async fn open(connection: &Arc<Connection>, topic: SmolStr, deadline: Instant) {
    let result = loop {
        match connection.ensure_topic(&topic).await {
            Err(error) if error.is_temporary() && Instant::now() + PAUSE < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            result => break result,
        }
    };
    let mut topics = connection.topics_seen.lock();
    let Some(StreamState::Opening(line)) = topics.remove(&topic) else { return };
    match result {
        Ok(batches) => {
            for (message, answer, deadline) in line {
                dispatch(connection, message, answer, deadline, batches);
            }
            topics.insert(topic, StreamState::Ready(batches));
        }
        Err(error) => {
            drop(topics);
            for (message, answer, _) in line {
                let copy = Error::new(error.kind(), format!("{error}")).with("subject", &message.subject);
                answer.send(Err(copy));
            }
        }
    }
}

/// Sends a message whose stream exists.
fn dispatch(
    connection: &Arc<Connection>,
    message: Message,
    answer: PendingPublish,
    deadline: Instant,
    batches: bool,
) {
    let mut headers = codec::headers(&message);
    if message.dedup {
        codec::put(&mut headers, codec::DEDUP_ID, &headers::escape(&message.id.to_string()).to_string());
    }
    if let Err(error) = fits(connection, &message, &headers) {
        answer.send(Err(error));
        return;
    }
    let subject = NatsSubject::from(connection.names.event(message.subject.as_str()));
    if batches {
        Batches::publish(connection, Item { subject, headers, message, answer, deadline });
    } else {
        connection.outbound.publish(subject, headers, message, answer, deadline);
    }
}

/// Checks the size on the wire. It includes header names and escapes, which a message's own size does not.
pub(super) fn fits(
    connection: &Connection,
    message: &Message,
    headers: &async_nats::HeaderMap,
) -> Result<()> {
    let bytes = message.payload.len() + codec::wire_len(headers);
    if bytes <= connection.max_wire {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, "the message with its headers is larger than the server takes")
        .with("subject", &message.subject)
        .with("bytes", bytes)
        .with("limit", connection.max_wire))
}

/// Sends a message for which there was no responder again, after a pause and a check of the stream.
pub(super) fn again(
    connection: &Arc<Connection>,
    message: Message,
    answer: PendingPublish,
    deadline: Instant,
) {
    if Instant::now() + PAUSE >= deadline {
        let error = Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment");
        answer.send(Err(error.with("subject", &message.subject)));
        return;
    }
    let mut topics = connection.topics_seen.lock();
    let topic = SmolStr::new(message.subject.topic());
    match topics.get_mut(&topic) {
        Some(StreamState::Opening(line)) => line.push((message, answer, deadline)),
        _ => {
            topics.insert(topic.clone(), StreamState::Opening(vec![(message, answer, deadline)]));
            drop(topics);
            let opened = connection.clone();
            connection.vital("nats topic", async move {
                tokio::time::sleep(PAUSE).await;
                open(&opened, topic, deadline).await;
            });
        }
    }
}

impl Connection {
    /// Ensures that a topic's stream exists, and adds it to groups with a wildcard. Returns whether it accepts
    /// batches.
    pub(super) async fn ensure_topic(self: &Arc<Self>, topic: &str) -> Result<bool> {
        let there = self.compare_stream(Kind::Topic(topic)).await?.0.is_some();
        let stream = self.ensure_stream(Kind::Topic(topic)).await?;
        if !there {
            self.join_wildcards(topic).await?;
            self.tell_news();
        }
        Ok(self.batches() && stream.config[batch::SETTING] == true)
    }
}
