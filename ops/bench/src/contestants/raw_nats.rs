//! Runs async-nats in its fastest way: a sliding window of JetStream publishes, and `messages()` with many
//! per pull request. With `SURE` each acknowledgement is confirmed; one inbox receives all confirmations.

use std::collections::VecDeque;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, stream};
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use crate::contestant::{CONTENT_TYPE, Consumer, Contestant, PREFETCH, Place, Publisher, id};

pub struct RawNats<const SURE: bool> {
    place: Place,
    client: Client,
    context: jetstream::Context,
}

impl<const SURE: bool> RawNats<SURE> {
    /// Creates the stream and its durable consumer, for contestants that do not create them.
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
                    max_ack_pending: 4000,
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

    /// Returns the number of messages that the durable consumer has not settled.
    pub async fn left(&self) -> Result<u64> {
        let mut consumer = self.pull().await?;
        let info = consumer.info().await?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }
}

impl<const SURE: bool> Contestant for RawNats<SURE> {
    type Publisher = RawPublisher;
    type Consumer = RawConsumer<SURE>;

    async fn open(place: &Place) -> Result<Self> {
        Self::prepare(place).await
    }

    async fn publisher(&self) -> Result<RawPublisher> {
        Ok(RawPublisher { context: self.context.clone(), subject: self.place.subject().into() })
    }

    async fn consumer(&self) -> Result<RawConsumer<SURE>> {
        let consumer = self.pull().await?;
        let messages = consumer.stream().max_messages_per_batch(PREFETCH).messages().await?;
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

pub struct RawConsumer<const SURE: bool> {
    client: Client,
    messages: pull::Stream,
}

impl<const SURE: bool> Consumer for RawConsumer<SURE> {
    /// A plain acknowledgement is a message that the server does not answer, so `at_once` makes no difference
    /// to it.
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        mut arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        if !SURE {
            for _ in 0..total {
                let message = self.messages.next().await.context("the stream ended")??;
                arrived(&message.payload);
                message.ack().await.map_err(anyhow::Error::msg)?;
            }
            return Ok(self.client.flush().await?);
        }
        let client = &self.client;
        (&mut self.messages)
            .take(total)
            .map_err(anyhow::Error::new)
            .inspect_ok(|message| arrived(&message.payload))
            .try_for_each_concurrent(at_once, |message| async move {
                let place = message.reply.clone().context("no reply subject")?;
                client.request(place, AckKind::Ack.into()).await?;
                Ok(())
            })
            .await
    }

    async fn close(self) -> Result<()> {
        drop(self.messages);
        // Not drained: the number of unsettled messages is queried through the same connection.
        Ok(self.client.flush().await?)
    }
}
