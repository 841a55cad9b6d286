//! async-nats alone in its best shape: a sliding window of JetStream publishes, and `messages()` with many per request.

use std::collections::VecDeque;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::contestant::{CONTENT_TYPE, Consumer, Contestant, Place, Publisher, id};

/// Messages asked for at a time; fewer cost throughput, more gain nothing.
const BATCH: usize = 1000;

pub struct RawNats {
    place: Place,
    client: Client,
    context: jetstream::Context,
}

impl RawNats {
    /// The stream and its durable consumer, for whoever does not make them.
    pub async fn prepare(place: &Place) -> Result<Self> {
        let client = async_nats::connect(&place.url).await?;
        let context = jetstream::new(client.clone());
        let stream = context
            .get_or_create_stream(stream::Config {
                name: place.name.clone(),
                subjects: vec![format!("{}.>", place.name)],
                ..Default::default()
            })
            .await?;
        stream
            .get_or_create_consumer(
                &place.group(),
                pull::Config {
                    durable_name: Some(place.group()),
                    ack_policy: AckPolicy::Explicit,
                    max_ack_pending: 4 * BATCH as i64,
                    ..Default::default()
                },
            )
            .await?;
        Ok(Self { place: place.clone(), client, context })
    }

    async fn pull(&self) -> Result<PullConsumer> {
        let stream = self.context.get_stream(&self.place.name).await?;
        stream.get_consumer(&self.place.group()).await.map_err(anyhow::Error::msg)
    }

    /// What the durable consumer has not settled.
    pub async fn left(&self) -> Result<u64> {
        let mut consumer = self.pull().await?;
        let info = consumer.info().await?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }
}

impl Contestant for RawNats {
    type Publisher = RawPublisher;
    type Consumer = RawConsumer;

    async fn open(place: &Place) -> Result<Self> {
        Self::prepare(place).await
    }

    async fn publisher(&self) -> Result<RawPublisher> {
        Ok(RawPublisher { context: self.context.clone(), subject: self.place.subject().into() })
    }

    async fn consumer(&self) -> Result<RawConsumer> {
        let consumer = self.pull().await?;
        let messages = consumer.stream().max_messages_per_batch(BATCH).messages().await?;
        Ok(RawConsumer { client: self.client.clone(), messages })
    }

    async fn unsettled(&self) -> Result<u64> {
        self.left().await
    }
}

pub struct RawPublisher {
    context: jetstream::Context,
    subject: Subject,
}

impl Publisher for RawPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let mut waiting = VecDeque::with_capacity(window);
        for _ in 0..total {
            if waiting.len() == window {
                let first: jetstream::context::PublishAckFuture =
                    waiting.pop_front().context("a full window")?;
                first.await?;
            }
            let mut headers = HeaderMap::new();
            headers.insert("content-type", CONTENT_TYPE);
            headers.insert("ce-id", id());
            let sent = self.context.publish_with_headers(self.subject.clone(), headers, payload.clone());
            waiting.push_back(sent.await?);
        }
        for sent in waiting {
            sent.await?;
        }
        Ok(())
    }
}

pub struct RawConsumer {
    client: Client,
    messages: pull::Stream,
}

impl Consumer for RawConsumer {
    /// A plain acknowledgement is a message to the server that nothing answers, so `at_once` makes no difference.
    async fn consume(&mut self, total: usize, _: usize, mut arrived: impl FnMut(&[u8]) + Send) -> Result<()> {
        for _ in 0..total {
            let message = self.messages.next().await.context("the stream ended")??;
            arrived(&message.payload);
            message.ack().await.map_err(anyhow::Error::msg)?;
        }
        Ok(self.client.flush().await?)
    }

    async fn close(self) -> Result<()> {
        drop(self.messages);
        // Not drained: what is left unsettled is asked for through the same connection.
        Ok(self.client.flush().await?)
    }
}
