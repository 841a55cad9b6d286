//! Runs omniqueue on RabbitMQ through lapin 2: it never enables confirms, so a publish returns when it is
//! written.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::try_join_all;
use lapin_2::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin_2::types::FieldTable;
use lapin_2::{BasicProperties, ConnectionProperties};
use omniqueue::QueueBuilder;
use omniqueue::backends::{RabbitMqBackend, RabbitMqConfig, RabbitMqConsumer, RabbitMqProducer};

use super::raw_rabbit;
use crate::contestant::{CONTENT_TYPE, Consumer, Contestant, PREFETCH, Place, Publisher};

pub struct OmniqueueRabbit {
    place: Place,
}

fn builder(place: &Place) -> QueueBuilder<RabbitMqBackend> {
    let connection_properties = ConnectionProperties::default()
        .with_executor(tokio_executor_trait::Tokio::current())
        .with_reactor(tokio_reactor_trait::Tokio);
    RabbitMqBackend::builder(RabbitMqConfig {
        uri: place.url.clone(),
        connection_properties,
        publish_exchange: place.name.clone(),
        publish_routing_key: place.subject(),
        publish_options: BasicPublishOptions::default(),
        publish_properties: BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(CONTENT_TYPE.into()),
        consume_queue: place.name.clone(),
        consumer_tag: "bench".to_owned(),
        consume_options: BasicConsumeOptions::default(),
        consume_arguments: FieldTable::default(),
        consume_prefetch_count: Some(PREFETCH as u16),
        requeue_on_nack: true,
    })
}

impl Contestant for OmniqueueRabbit {
    type Publisher = OmniPublisher;
    type Consumer = OmniConsumer;

    async fn open(place: &Place) -> Result<Self> {
        let connection = raw_rabbit::prepare(place).await?;
        connection.close(200, "done".into()).await?;
        Ok(Self { place: place.clone() })
    }

    async fn publisher(&self) -> Result<OmniPublisher> {
        Ok(OmniPublisher { producer: builder(&self.place).build_producer().await? })
    }

    async fn consumer(&self) -> Result<OmniConsumer> {
        Ok(OmniConsumer { consumer: builder(&self.place).build_consumer().await? })
    }

    async fn unsettled(&self) -> Result<u64> {
        raw_rabbit::left(&self.place).await
    }
}

pub struct OmniPublisher {
    producer: RabbitMqProducer,
}

impl Publisher for OmniPublisher {
    /// The window makes no difference, because no publish is confirmed.
    async fn publish(&mut self, payload: &Bytes, total: usize, _: usize) -> Result<()> {
        for _ in 0..total {
            self.producer.send_raw(payload).await?;
        }
        Ok(())
    }
}

pub struct OmniConsumer {
    consumer: RabbitMqConsumer,
}

impl Consumer for OmniConsumer {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        mut arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let mut taken = 0;
        while taken < total {
            let batch = match at_once {
                1 => vec![self.consumer.receive().await?],
                _ => self.consumer.receive_all(at_once, Duration::from_secs(1)).await?,
            };
            taken += batch.len();
            let acks = batch.into_iter().map(|delivery| {
                arrived(delivery.borrow_payload().unwrap_or_default());
                async { delivery.ack().await.map_err(|(error, _)| error) }
            });
            try_join_all(acks.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        // A background task writes its acknowledgements, and it has no way to query whether they were
        // written.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }
}
