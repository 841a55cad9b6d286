//! Delayed publish on all supported servers: a message is stored in the work stream, delayed by nak until it is due,
//! and then published like any other. Every connection with subscriptions helps to move due messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::codec;
use super::connection::Connection;
use super::group::StartAt;
use super::member::Source;
use super::pub_ack::PendingPublish;
use super::pull::{PullStatus, Pulls};
use super::settle::{ACK, delayed};
use super::streams::Kind;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, MessageId};
use crate::subject::Subject;
use crate::transport::{Provision, Receipt, headers};

const CONSUMER: &str = "delay";
const LEASE: Duration = Duration::from_secs(30);
/// Pause before the consumer is looked up again after a pull from it failed.
const INTERRUPTED: Duration = Duration::from_millis(250);
/// Largest number of messages that one connection requests at a time.
const ROOM: usize = 64;
/// Header of a message that was published with a dedup id. Its topic then uses that id as well.
const DEDUP: &str = "bus-dedup";

/// Stores a message that is to be delivered later.
pub(super) fn publish(connection: &Arc<Connection>, message: Message, answer: PendingPublish) {
    let connection = connection.clone();
    connection.tasks.clone().spawn(async move {
        let result = store(&connection, message).await;
        answer.send(result.map(|receipt| Receipt { position: None, ..receipt }));
    });
}

async fn store(connection: &Arc<Connection>, message: Message) -> Result<Receipt> {
    let mut headers = codec::headers(&message);
    let mut put = |name: &str, value: &str| codec::put(&mut headers, name, value);
    put(headers::SUBJECT, message.subject.as_str());
    if let Some(at) = message.deliver_at {
        // Rounded up, so that the message is not delivered a millisecond early.
        put(headers::DELIVER_AT, &at.as_millisecond().saturating_add(1).to_string());
    }
    if message.dedup {
        put(DEDUP, "1");
        put(
            codec::DEDUP_ID,
            &headers::escape(&format!("{}/{}", message.subject.topic(), message.id)).to_string(),
        );
    }
    super::publish::fits(connection, &message, &headers)?;
    ensure(connection, connection.config.provision).await?;
    connection.topic_for_later(message.subject.topic()).await?;
    let subject = connection.names.delayed(&uuid::Uuid::now_v7().simple().to_string());
    let store = || connection.outbound.store(subject.clone(), headers.clone(), message.payload.clone());
    match store().await {
        // No responder: the stream may have been deleted.
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            connection.work_ready.store(false, Ordering::Release);
            ensure(connection, connection.config.provision).await?;
            store().await
        }
        stored => stored,
    }
}

async fn ensure(connection: &Connection, provision: Provision) -> Result<()> {
    if connection.work_ready.load(Ordering::Acquire) {
        return Ok(());
    }
    connection.ensure_stream(Kind::Work).await?;
    let filter = format!("{}.sys.delay.>", connection.config.namespace);
    let stream = connection.names.work();
    connection.put_consumer_with(&stream, CONSUMER, &[filter], &StartAt::All, LEASE, -1, provision).await?;
    connection.work_ready.store(true, Ordering::Release);
    connection.tell_news();
    Ok(())
}

impl Connection {
    /// Creates the topic of a delayed message now, so that its publisher receives the error if that fails.
    async fn topic_for_later(self: &Arc<Self>, topic: &str) -> Result<()> {
        if !self.topics_seen.is_ready(topic) {
            let batches = self.ensure_topic(topic).await?;
            self.topics_seen.ready(topic, batches);
        }
        Ok(())
    }

    /// Notifies all connections of new topics, a new work stream or replayed letters.
    pub(super) fn tell_news(&self) {
        self.outbound.send_bare(NatsSubject::from(self.names.news()), None, bytes::Bytes::new());
    }

    /// Starts the task that moves due messages while this connection exists.
    pub(super) async fn start_mover(self: &Arc<Self>) -> Result<()> {
        self.mover
            .get_or_try_init(|| async {
                let inbox = self.client.new_inbox();
                let listen = async |subject: String| {
                    self.client.subscribe(subject).await.map_err(|error| {
                        Error::new(ErrorKind::Unavailable, "the subscription did not reach the server")
                            .because(error)
                    })
                };
                let (messages, news) =
                    (listen(format!("{inbox}.>")).await?, listen(self.names.news()).await?);
                let pulls = Pulls::new(self.outbound.clone(), inbox);
                let mover = Mover { connection: Arc::downgrade(self), messages, news, pulls };
                self.vital("nats delays", mover.run());
                Ok(())
            })
            .await
            .map(drop)
    }
}

struct Mover {
    connection: std::sync::Weak<Connection>,
    messages: async_nats::Subscriber,
    news: async_nats::Subscriber,
    pulls: Pulls,
}

impl Mover {
    async fn run(mut self) {
        let Some((closed, mut connects)) = self
            .connection
            .upgrade()
            .map(|connection| (connection.closed.clone(), connection.connects.clone()))
        else {
            return;
        };
        let mut look = Instant::now();
        loop {
            if self.pulls.len() == 0 && Instant::now() >= look {
                self.look().await;
                look = Instant::now() + Duration::from_secs(30);
            }
            let (wake, mut interrupted) = self.pulls.top_up(ROOM);
            let next = wake.unwrap_or(look);
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => interrupted |= self.take(message),
                    None => return,
                },
                news = self.news.next() => if news.is_some() { look = Instant::now() } else { return },
                _ = connects.changed() => self.pulls.forget(),
                () = tokio::time::sleep_until(next) => {}
                () = closed.cancelled() => return,
            }
            if interrupted {
                // The consumer may have been deleted.
                self.pulls.clear();
                look = look.min(Instant::now() + INTERRUPTED);
            }
        }
    }

    async fn look(&mut self) {
        let Some(connection) = self.connection.upgrade() else { return };
        let stream = connection.names.work();
        if let Ok(Some(_)) = connection.consumer_info(&stream, CONSUMER).await {
            self.pulls.add(Source::new(stream, CONSUMER.into(), true));
        }
    }

    /// Processes a received message. Returns `true` when it reports that the consumer cannot be pulled from now.
    fn take(&mut self, message: async_nats::Message) -> bool {
        if let Some(status) = message.status {
            let said = self.pulls.status(&message, status);
            if let PullStatus::Failed(text) = &said {
                tracing::debug!(error = text, "moving delayed messages is interrupted");
            }
            return matches!(said, PullStatus::Failed(_));
        }
        if let Some(reply) = message.reply.clone() {
            self.move_or_wait(message, reply);
        }
        false
    }

    fn move_or_wait(&mut self, message: async_nats::Message, reply: NatsSubject) {
        let Some(connection) = self.connection.upgrade() else { return };
        let Some(ack) = codec::AckInfo::read(&reply) else { return };
        if self.pulls.received(ack.stream, ack.consumer, Instant::now()).is_none() {
            return;
        }
        let due = (message.headers.as_ref())
            .and_then(|headers| codec::get(headers, headers::DELIVER_AT))
            .and_then(headers::time)
            .unwrap_or_default();
        let left = bounds::left_until(due);
        if !left.is_zero() {
            return connection.outbound.send_bare(reply, None, delayed(left));
        }
        // A stream that is created again restarts its sequence, so the sequence alone is not unique.
        let place = format!("{}/{}", ack.sequence, ack.time);
        connection.tasks.clone().spawn(async move {
            match move_on(&connection, message, &place).await {
                Ok(()) => connection.outbound.send_bare(reply, None, ACK),
                // The message is delivered again when its lease has ended.
                Err(error) => {
                    tracing::warn!(%error, "a delayed message could not be published; it will be retried")
                }
            }
        });
    }
}

/// Publishes a due message to its topic.
async fn move_on(connection: &Arc<Connection>, message: async_nats::Message, place: &str) -> Result<()> {
    let headers = message.headers.unwrap_or_default();
    let Some(subject) = codec::get(&headers, headers::SUBJECT).and_then(|text| Subject::new(text).ok())
    else {
        return Ok(()); // not a message of this library
    };
    let dedup = codec::get(&headers, DEDUP).is_some();
    let message = codec::message(Some(&headers), message.payload, subject, || MessageId::Text(place.into()));
    let mut headers = codec::headers(&message);
    // With this id, a message that is moved twice is stored once.
    let id = match dedup {
        true => headers::escape(&message.id.to_string()).to_string(),
        false => format!("delay/{}/{place}", connection.config.namespace),
    };
    codec::put(&mut headers, codec::DEDUP_ID, &id);
    connection.topic_for_later(message.subject.topic()).await?;
    let (answer, confirm) = PendingPublish::free();
    let deadline = Instant::now() + connection.config.publish_timeout;
    let subject = NatsSubject::from(connection.names.event(message.subject.as_str()));
    connection.outbound.publish(subject, headers, message, answer, deadline);
    confirm.await.map(drop)
}
