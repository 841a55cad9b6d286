//! Runs ruststream on RabbitMQ through lapin, with its confirming publisher.

use anyhow::Result;
use bytes::Bytes;
use ruststream::{Broker, ConnectedBroker, nonzero};
use ruststream_lapin::{
    ConfirmsPublisher, ConnectedLapinBroker, LapinBroker, LapinPublish, LapinSubscriber, RabbitQueue,
};

use super::{raw_rabbit, ruststream_core};
use crate::contestant::{Consumer, Contestant, PREFETCH, Place, Publisher};

pub struct RuststreamLapin {
    place: Place,
    broker: ConnectedLapinBroker,
}

/// It declares nothing by default: the queue is the raw client's, of either type.
async fn connect(place: &Place) -> Result<ConnectedLapinBroker> {
    const _: () = assert!(PREFETCH == 256, "the literal below");
    Ok(LapinBroker::new(place.url.as_str()).prefetch(nonzero!(256)).connect().await?)
}

impl Contestant for RuststreamLapin {
    type Publisher = RuststreamPublisher;
    type Consumer = RuststreamConsumer;

    async fn open(place: &Place) -> Result<Self> {
        let connection = raw_rabbit::prepare(place).await?;
        connection.close(200, "done".into()).await?;
        Ok(Self { place: place.clone(), broker: connect(place).await? })
    }

    async fn publisher(&self) -> Result<RuststreamPublisher> {
        let policy = LapinPublish::default().exchange(self.place.name.as_str()).confirms();
        Ok(RuststreamPublisher {
            publisher: self.broker.publisher(policy),
            routing_key: self.place.subject(),
        })
    }

    async fn consumer(&self) -> Result<RuststreamConsumer> {
        let broker = connect(&self.place).await?;
        let subscriber = broker.subscribe(RabbitQueue::new(self.place.name.as_str())).await?;
        Ok(RuststreamConsumer { broker, subscriber })
    }

    async fn unsettled(&self) -> Result<u64> {
        raw_rabbit::left(&self.place).await
    }
}

pub struct RuststreamPublisher {
    publisher: ConfirmsPublisher,
    routing_key: String,
}

impl Publisher for RuststreamPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        ruststream_core::lend(&self.publisher, &self.routing_key, payload, total, window).await
    }
}

pub struct RuststreamConsumer {
    broker: ConnectedLapinBroker,
    subscriber: LapinSubscriber,
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
