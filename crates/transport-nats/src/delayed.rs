//! Delayed publish on all supported servers: a message is stored in the work stream, delayed by nak until it is due,
//! and then published like any other. Every connection with subscriptions helps to move due messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use futures_util::StreamExt;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::client::Client;
use super::codec;
use super::group::consumer::{self, Durable};
use super::group::{Groups, StartAt};
use super::pub_ack::PendingPublish;
use super::pull::{PullStatus, Pulls};
use super::source::Source;
use super::streams::{self, Kind};
use event_transport::bounds;
use event_transport::error::{ErrorKind, Result};
use event_transport::message::{Message, MessageId};
use event_transport::subject::Subject;
use event_transport::{Receipt, headers};

const CONSUMER: &str = "delay";
const LEASE: Duration = Duration::from_secs(30);
/// Pause before the consumer is looked up again after a pull from it failed.
const INTERRUPTED: Duration = Duration::from_millis(250);
/// Largest number of messages that one connection requests at a time.
const ROOM: usize = 64;
/// Header of a message that was published with a dedup id. Its topic then uses that id as well.
const DEDUP: &str = "bus-dedup";

/// Stores delayed messages, and moves them to their topics when they are due.
pub(super) struct Delayed {
    client: Arc<Client>,
    groups: Arc<Groups>,
    /// Set once the stream of delayed messages is known to exist.
    ready: AtomicBool,
    /// Set once this connection receives notifications of new topics and moves delayed messages.
    mover: OnceCell<()>,
}

impl Delayed {
    pub(super) fn new(groups: &Arc<Groups>) -> Arc<Self> {
        Arc::new(Self {
            client: groups.client.clone(),
            groups: groups.clone(),
            ready: AtomicBool::new(false),
            mover: OnceCell::new(),
        })
    }

    /// Stores a message that is to be delivered later.
    pub(super) fn publish(self: &Arc<Self>, message: Message, answer: PendingPublish) {
        let delayed = self.clone();
        self.client.tasks.spawn(async move {
            let result = delayed.store(message).await;
            answer.send(result.map(|receipt| Receipt { position: None, ..receipt }));
        });
    }

    async fn store(&self, message: Message) -> Result<Receipt> {
        let client = &self.client;
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
        client.server.fits(&message, &headers)?;
        self.ensure().await?;
        self.ensure_topic(message.subject.topic()).await?;
        let subject = client.names.delayed(&uuid::Uuid::now_v7().simple().to_string());
        let store = || client.outbound.store(subject.clone(), headers.clone(), message.payload.clone());
        match store().await {
            // No responder: the stream may have been deleted.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.ready.store(false, Ordering::Release);
                self.ensure().await?;
                store().await
            }
            stored => stored,
        }
    }

    /// Ensures that the stream of delayed messages and its consumer exist.
    async fn ensure(&self) -> Result<()> {
        if self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let client = &self.client;
        streams::ensure(client, Kind::Work).await?;
        let durable = Durable {
            stream: &client.names.work(),
            name: CONSUMER,
            filters: &[format!("{}.sys.delay.>", client.config.namespace)],
            from: &StartAt::All,
            lease: LEASE,
            most_pending: -1,
        };
        consumer::put(client, durable, client.config.provision).await?;
        self.ready.store(true, Ordering::Release);
        streams::tell_news(client);
        Ok(())
    }

    /// Creates the topic of a delayed message now, so that its publisher receives the error if that fails.
    async fn ensure_topic(&self, topic: &str) -> Result<()> {
        if !self.groups.topics.is_ready(topic) {
            let batches = self.groups.ensure_topic(topic).await?;
            self.groups.topics.ready(topic, batches);
        }
        Ok(())
    }

    /// Starts the task that moves due messages while this object exists.
    pub(super) async fn start_mover(self: &Arc<Self>) -> Result<()> {
        self.mover
            .get_or_try_init(|| async {
                let client = &self.client;
                let inbox = client.new_inbox();
                let mover = Mover {
                    delayed: Arc::downgrade(self),
                    messages: client.subscribe(format!("{inbox}.>")).await?,
                    news: client.subscribe(client.names.news()).await?,
                    pulls: Pulls::new(client.outbound.clone(), inbox),
                };
                client.vital("nats delays", mover.run());
                Ok(())
            })
            .await
            .map(drop)
    }

    /// Publishes a due message to its topic.
    async fn move_on(&self, message: async_nats::Message, place: &str) -> Result<()> {
        let headers = message.headers.unwrap_or_default();
        let Some(subject) = codec::get(&headers, headers::SUBJECT).and_then(|text| Subject::new(text).ok())
        else {
            return Ok(()); // not a message of this library
        };
        let dedup = codec::get(&headers, DEDUP).is_some();
        let message =
            codec::message(Some(&headers), message.payload, subject, || MessageId::Text(place.into()));
        let mut headers = codec::headers(&message);
        // With this id, a message that is moved twice is stored once.
        let id = match dedup {
            true => headers::escape(&message.id.to_string()).to_string(),
            false => format!("delay/{}/{place}", self.client.config.namespace),
        };
        codec::put(&mut headers, codec::DEDUP_ID, &id);
        self.ensure_topic(message.subject.topic()).await?;
        let (answer, confirm) = PendingPublish::free();
        let deadline = Instant::now() + self.client.config.publish_timeout;
        let subject = NatsSubject::from(self.client.names.event(message.subject.as_str()));
        self.client.outbound.publish(subject, headers, message, answer, deadline);
        confirm.await.map(drop)
    }
}

struct Mover {
    delayed: Weak<Delayed>,
    messages: async_nats::Subscriber,
    news: async_nats::Subscriber,
    pulls: Pulls,
}

impl Mover {
    async fn run(mut self) {
        let Some(delayed) = self.delayed.upgrade() else { return };
        let (closed, mut connects) = (delayed.client.closed.clone(), delayed.client.link.connects.clone());
        drop(delayed);
        let mut look = Instant::now();
        while self.delayed.strong_count() > 0 {
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
        let Some(delayed) = self.delayed.upgrade() else { return };
        let stream = delayed.client.names.work();
        if let Ok(Some(_)) = consumer::info(&delayed.client, &stream, CONSUMER).await {
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
        let Some(delayed) = self.delayed.upgrade() else { return };
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
            return delayed.client.outbound.send_bare(reply, None, codec::nak(left));
        }
        // A stream that is created again restarts its sequence, so the sequence alone is not unique.
        let place = format!("{}/{}", ack.sequence, ack.time);
        delayed.client.tasks.clone().spawn(async move {
            match delayed.move_on(message, &place).await {
                Ok(()) => delayed.client.outbound.send_bare(reply, None, codec::ACK),
                // The message is delivered again when its lease has ended.
                Err(error) => {
                    tracing::warn!(%error, "a delayed message could not be published; it will be retried")
                }
            }
        });
    }
}
