//! Runs lapin in its fastest way: tasks that each await their confirm on one channel, and `multiple`
//! acknowledgements.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};

use crate::contestant::{
    CONTENT_TYPE, Consumer, Contestant, Durability, PREFETCH, Place, Publisher, id, in_tasks,
};

pub struct RawRabbit {
    place: Place,
    connection: Connection,
}

/// Creates a topic exchange and a queue bound to it, for contestants that do not create them.
pub async fn prepare(place: &Place) -> Result<Connection> {
    let connection = Connection::connect(&place.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let name = ShortString::from(place.name.as_str());
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(name.clone(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    let mut arguments = FieldTable::default();
    if place.durability == Durability::Fsync {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.clone(), durable, arguments).await?;
    let every = ShortString::from("#");
    channel.queue_bind(name.clone(), name, every, QueueBindOptions::default(), FieldTable::default()).await?;
    channel.close(200, "done".into()).await?;
    Ok(connection)
}

/// Returns the number of messages in the queue; those of a closed consumer have returned to it.
pub async fn left(place: &Place) -> Result<u64> {
    let connection = Connection::connect(&place.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(place.name.as_str().into(), passive, FieldTable::default()).await?;
    let count = queue.message_count();
    connection.close(200, "done".into()).await?;
    Ok(u64::from(count))
}

impl Contestant for RawRabbit {
    type Publisher = RawPublisher;
    type Consumer = RawConsumer;

    async fn open(place: &Place) -> Result<Self> {
        Ok(Self { place: place.clone(), connection: prepare(place).await? })
    }

    async fn publisher(&self) -> Result<RawPublisher> {
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (exchange, routing_key) = (self.place.name.as_str().into(), self.place.subject().as_str().into());
        Ok(RawPublisher { channel, exchange, routing_key })
    }

    async fn consumer(&self) -> Result<RawConsumer> {
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(PREFETCH as u16, BasicQosOptions::default()).await?;
        let queue = self.place.name.as_str().into();
        let tag = ShortString::from("bench");
        let consumer =
            channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await?;
        Ok(RawConsumer { channel, consumer })
    }

    async fn unsettled(&self) -> Result<u64> {
        left(&self.place).await
    }
}

#[derive(Clone)]
pub struct RawPublisher {
    channel: Channel,
    exchange: ShortString,
    routing_key: ShortString,
}

impl Publisher for RawPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let (this, payload) = (self.clone(), payload.clone());
        in_tasks(total, window, move || {
            let (this, payload) = (this.clone(), payload.clone());
            async move {
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_content_type(CONTENT_TYPE.into())
                    .with_message_id(id().as_str().into());
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                let sent = this.channel.basic_publish(
                    this.exchange,
                    this.routing_key,
                    options,
                    &payload,
                    properties,
                );
                match sent.await?.await? {
                    Confirmation::Ack(None) => Ok(()),
                    other => bail!("not confirmed: {other:?}"),
                }
            }
        })
        .await
    }
}

pub struct RawConsumer {
    channel: Channel,
    consumer: lapin::Consumer,
}

impl Consumer for RawConsumer {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        mut arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        for taken in 1..=total {
            let delivery = self.consumer.next().await.context("the consumer ended")??;
            arrived(&delivery.data);
            if taken % at_once == 0 || taken == total {
                delivery.ack(BasicAckOptions { multiple: at_once > 1 }).await?;
            }
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        // The server answers this after it has processed everything sent before.
        Ok(self.channel.close(200, "done".into()).await?)
    }
}
