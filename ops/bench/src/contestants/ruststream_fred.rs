//! Runs ruststream on Redis Streams through fred, with its default pool of four connections.

use anyhow::Result;
use bytes::Bytes;
use ruststream::{Broker, ConnectedBroker};
use ruststream_fred::{
    ConnectedRedisBroker, RedisBroker, RedisPublisher, RedisStream, RedisSubscriber, StreamStart,
};

use super::{raw_redis, ruststream_core};
use crate::contestant::{Consumer, Contestant, Place, Publisher};

pub struct RuststreamFred {
    place: Place,
    broker: ConnectedRedisBroker,
}

impl Contestant for RuststreamFred {
    type Publisher = RuststreamPublisher;
    type Consumer = RuststreamConsumer;

    async fn open(place: &Place) -> Result<Self> {
        raw_redis::prepare(place).await?;
        let broker = RedisBroker::standalone(place.url.as_str()).connect().await?;
        Ok(Self { place: place.clone(), broker })
    }

    async fn publisher(&self) -> Result<RuststreamPublisher> {
        Ok(RuststreamPublisher { publisher: self.broker.publisher(), key: self.place.name.clone() })
    }

    async fn consumer(&self) -> Result<RuststreamConsumer> {
        let broker = RedisBroker::standalone(self.place.url.as_str()).connect().await?;
        let source = RedisStream::new(self.place.name.as_str())
            .group(self.place.group())
            .consumer("one")
            .start_id(StreamStart::Beginning);
        let subscriber = broker.subscribe(source).await?;
        Ok(RuststreamConsumer { broker, subscriber })
    }

    async fn unsettled(&self) -> Result<u64> {
        raw_redis::left(&self.place).await
    }
}

pub struct RuststreamPublisher {
    publisher: RedisPublisher,
    key: String,
}

impl Publisher for RuststreamPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        ruststream_core::publish(&self.publisher, &self.key, payload, total, window).await
    }
}

pub struct RuststreamConsumer {
    broker: ConnectedRedisBroker,
    subscriber: RedisSubscriber,
}

impl Consumer for RuststreamConsumer {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        ruststream_core::consume(&mut self.subscriber, total, at_once, arrived).await
    }

    async fn close(self) -> Result<()> {
        drop(self.subscriber);
        self.broker.shutdown().await?;
        Ok(())
    }
}
