//! Runs ruststream on JetStream. It creates no streams: the raw client does. Each publish awaits its
//! acknowledgement.

use anyhow::Result;
use bytes::Bytes;
use ruststream::{Broker, ConnectedBroker};
use ruststream_nats::{
    ConnectedNatsBroker, JetStreamPublish, JetStreamPublisher, JetStreamSubject, NatsBroker, NatsSubscriber,
};

use super::raw_nats::RawNats;
use super::ruststream_core;
use crate::contestant::{Consumer, Contestant, Place, Publisher};

pub struct RuststreamNats {
    place: Place,
    raw: RawNats<false>,
    broker: ConnectedNatsBroker,
}

impl Contestant for RuststreamNats {
    type Publisher = RuststreamPublisher;
    type Consumer = RuststreamConsumer;

    async fn open(place: &Place) -> Result<Self> {
        let raw = RawNats::<false>::prepare(place).await?;
        let broker = NatsBroker::new(place.url.as_str()).connect().await?;
        Ok(Self { place: place.clone(), raw, broker })
    }

    async fn publisher(&self) -> Result<RuststreamPublisher> {
        let publisher = self.broker.publisher(JetStreamPublish::default());
        Ok(RuststreamPublisher { publisher, subject: self.place.subject() })
    }

    async fn consumer(&self) -> Result<RuststreamConsumer> {
        // A separate connection, as in a service, and because closing it ends the pull.
        let broker = NatsBroker::new(self.place.url.as_str()).connect().await?;
        let source = JetStreamSubject::new(format!("{}.>", self.place.name), self.place.name.as_str())
            .durable(self.place.group())
            .max_ack_pending(4000);
        let subscriber = broker.subscribe_with(source).await?;
        Ok(RuststreamConsumer { broker, subscriber })
    }

    async fn unsettled(&self) -> Result<u64> {
        self.raw.left().await
    }
}

pub struct RuststreamPublisher {
    publisher: JetStreamPublisher,
    subject: String,
}

impl Publisher for RuststreamPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        ruststream_core::publish(&self.publisher, &self.subject, payload, total, window).await
    }
}

pub struct RuststreamConsumer {
    broker: ConnectedNatsBroker,
    subscriber: NatsSubscriber,
}

impl Consumer for RuststreamConsumer {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        ruststream_core::consume(&mut self.subscriber, total, at_once, arrived).await?;
        Ok(self.broker.client().flush().await?)
    }

    async fn close(self) -> Result<()> {
        drop(self.subscriber);
        self.broker.shutdown().await?;
        Ok(())
    }
}
