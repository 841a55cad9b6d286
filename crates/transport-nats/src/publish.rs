//! Publishes messages: ensures that a topic's stream exists before its first message, then sends each one directly.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::batch::{Batches, Item};
use super::client::Client;
use super::codec;
use super::delayed::Delayed;
use super::group::Groups;
use super::pub_ack::{InflightBudget, Outgoing, PendingPublish};
use super::topics::TopicState;
use event_transport::confirm::Confirm;
use event_transport::error::{Error, ErrorKind};
use event_transport::message::Message;
use event_transport::{Receipt, headers};

/// Pause before a message for which there was no responder is sent again.
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes the messages of one connection.
pub(super) struct Publisher {
    client: Arc<Client>,
    groups: Arc<Groups>,
    delayed: Arc<Delayed>,
    batches: Arc<Batches>,
    unconfirmed: InflightBudget,
}

impl Publisher {
    pub(super) fn new(groups: &Arc<Groups>, delayed: &Arc<Delayed>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            client: groups.client.clone(),
            groups: groups.clone(),
            delayed: delayed.clone(),
            batches: Batches::new(&groups.client, Box::new(resend(me.clone()))),
            unconfirmed: InflightBudget::default(),
        })
    }

    /// Returns a function that publishes a message for which there was no responder again.
    pub(super) fn resend(self: &Arc<Self>) -> impl Fn(Outgoing) + Send + Sync + 'static {
        resend(Arc::downgrade(self))
    }

    /// Publishes a message that the capabilities allow.
    pub(super) fn publish(self: &Arc<Self>, message: Message) -> Confirm<Receipt> {
        let (answer, confirm) = match self.unconfirmed.reserve(&message) {
            Ok(entered) => entered,
            Err(error) => return Confirm::ready(Err(error)),
        };
        let deadline = Instant::now() + self.client.config.publish_timeout;
        if message.deliver_at.is_some_and(|at| at > Timestamp::now()) {
            self.delayed.publish(message, answer);
            return confirm;
        }
        let mut topics = self.groups.topics.lock();
        match topics.get_mut(message.subject.topic()) {
            Some(TopicState::Ready(batches)) => {
                let batches = *batches;
                drop(topics);
                self.dispatch(message, answer, deadline, batches);
            }
            Some(TopicState::Opening(line)) => line.push(Outgoing { message, answer, deadline }),
            None => {
                let topic = SmolStr::new(message.subject.topic());
                let line = vec![Outgoing { message, answer, deadline }];
                topics.insert(topic.clone(), TopicState::Opening(line));
                drop(topics);
                let publisher = self.clone();
                self.client.vital("nats topic", async move { publisher.open(topic, deadline).await });
            }
        }
        confirm
    }

    /// Ensures that the stream exists, then sends the messages that waited for it.
    async fn open(&self, topic: SmolStr, deadline: Instant) {
        let result = loop {
            match self.groups.ensure_topic(&topic).await {
                Err(error) if error.is_temporary() && Instant::now() + PAUSE < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                result => break result,
            }
        };
        let mut topics = self.groups.topics.lock();
        let Some(TopicState::Opening(line)) = topics.remove(&topic) else { return };
        match result {
            Ok(batches) => {
                for Outgoing { message, answer, deadline } in line {
                    self.dispatch(message, answer, deadline, batches);
                }
                topics.insert(topic, TopicState::Ready(batches));
            }
            Err(error) => {
                drop(topics);
                for Outgoing { message, answer, .. } in line {
                    let copy = Error::new(error.kind(), format!("{error}")).with("subject", &message.subject);
                    answer.send(Err(copy));
                }
            }
        }
    }

    /// Sends a message whose stream exists.
    fn dispatch(&self, message: Message, answer: PendingPublish, deadline: Instant, batches: bool) {
        let mut headers = codec::headers(&message);
        if message.dedup {
            codec::put(&mut headers, codec::DEDUP_ID, &headers::escape(&message.id.to_string()).to_string());
        }
        if let Err(error) = self.client.server.fits(&message, &headers) {
            answer.send(Err(error));
            return;
        }
        let subject = NatsSubject::from(self.client.names.event(message.subject.as_str()));
        if batches {
            self.batches.publish(Item { subject, headers, message, answer, deadline });
        } else {
            self.client.outbound.publish(subject, headers, message, answer, deadline);
        }
    }

    /// Sends a message for which there was no responder again, after a pause and a check of the stream.
    fn again(self: &Arc<Self>, outgoing: Outgoing) {
        let deadline = outgoing.deadline;
        if Instant::now() + PAUSE >= deadline {
            return refuse(outgoing);
        }
        let mut topics = self.groups.topics.lock();
        let topic = SmolStr::new(outgoing.message.subject.topic());
        match topics.get_mut(&topic) {
            Some(TopicState::Opening(line)) => line.push(outgoing),
            _ => {
                topics.insert(topic.clone(), TopicState::Opening(vec![outgoing]));
                drop(topics);
                let publisher = self.clone();
                self.client.vital("nats topic", async move {
                    tokio::time::sleep(PAUSE).await;
                    publisher.open(topic, deadline).await;
                });
            }
        }
    }

    /// Waits until no message of a batch waits or is in flight.
    pub(super) async fn idle(&self) {
        self.batches.idle().await;
    }

    /// Drops all messages that wait; their publishers receive an error that the connection is closed.
    pub(super) fn abandon(&self) {
        self.batches.abandon();
        self.groups.topics.abandon();
    }
}

fn resend(publisher: Weak<Publisher>) -> impl Fn(Outgoing) + Send + Sync + 'static {
    move |outgoing| match publisher.upgrade() {
        Some(publisher) => publisher.again(outgoing),
        None => refuse(outgoing),
    }
}

fn refuse(Outgoing { message, answer, .. }: Outgoing) {
    let error = Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment");
    answer.send(Err(error.with("subject", &message.subject)));
}
