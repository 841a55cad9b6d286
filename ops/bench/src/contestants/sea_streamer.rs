//! Runs sea-streamer on Redis Streams: it pipelines waiting publishes; it collects acknowledgements and sends
//! them from time to time.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use sea_streamer_redis::{
    AutoCommit, AutoStreamReset, RedisConsumer, RedisConsumerOptions, RedisProducer, RedisStreamer,
    SendFuture,
};
use sea_streamer_types::{
    Buffer, Consumer as _, ConsumerGroup, ConsumerMode, ConsumerOptions, Message, Producer, StreamKey,
    Streamer,
};

use super::raw_redis;
use crate::contestant::{Consumer, Contestant, PREFETCH, Place, Publisher};

pub struct SeaStreamer {
    place: Place,
    streamer: RedisStreamer,
}

impl Contestant for SeaStreamer {
    type Publisher = SeaPublisher;
    type Consumer = SeaConsumer;

    async fn open(place: &Place) -> Result<Self> {
        raw_redis::prepare(place).await?;
        let streamer = RedisStreamer::connect(place.url.parse()?, Default::default()).await?;
        Ok(Self { place: place.clone(), streamer })
    }

    async fn publisher(&self) -> Result<SeaPublisher> {
        let key = StreamKey::new(&self.place.name)?;
        Ok(SeaPublisher { producer: self.streamer.create_producer(key, Default::default()).await? })
    }

    async fn consumer(&self) -> Result<SeaConsumer> {
        let mut options = RedisConsumerOptions::new(ConsumerMode::LoadBalanced);
        options.set_consumer_group(ConsumerGroup::new(self.place.group()))?;
        options.set_auto_stream_reset(AutoStreamReset::Earliest);
        options.set_batch_size(PREFETCH);
        // Prefetches, and commits automatically the messages that were acknowledged by hand.
        options.set_auto_commit(AutoCommit::Rolling);
        options.set_auto_commit_delay(Duration::ZERO);
        let key = StreamKey::new(&self.place.name)?;
        Ok(SeaConsumer { consumer: self.streamer.create_consumer(&[key], options).await? })
    }

    async fn unsettled(&self) -> Result<u64> {
        raw_redis::left(&self.place).await
    }
}

pub struct SeaPublisher {
    producer: RedisProducer,
}

impl Publisher for SeaPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let mut waiting: VecDeque<SendFuture> = VecDeque::with_capacity(window);
        for _ in 0..total {
            if waiting.len() == window {
                waiting.pop_front().context("a full window")?.await?;
            }
            waiting.push_back(self.producer.send(&payload[..])?);
        }
        for sent in waiting {
            sent.await?;
        }
        Ok(())
    }
}

pub struct SeaConsumer {
    consumer: RedisConsumer,
}

impl Consumer for SeaConsumer {
    /// `ack` only records the message and returns at once, so `at_once` makes no difference.
    async fn consume(&mut self, total: usize, _: usize, mut arrived: impl FnMut(&[u8]) + Send) -> Result<()> {
        for _ in 0..total {
            let message = self.consumer.next().await?;
            arrived(message.message().as_bytes());
            self.consumer.ack(&message)?;
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        // Commits the remaining acknowledgements when its blocking read ends: up to 10 s.
        Ok(self.consumer.end().await?)
    }
}
