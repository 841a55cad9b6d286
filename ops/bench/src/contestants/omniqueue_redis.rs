//! Runs omniqueue on Redis Streams: each command takes a connection from a pool; `ack` is XACK and XDEL.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::try_join_all;
use omniqueue::backends::redis::RedisConnectionManager;
use omniqueue::backends::{RedisBackend, RedisConfig, RedisConsumer, RedisProducer};

use super::raw_redis;
use crate::contestant::{Consumer, Contestant, Place, Publisher, in_tasks};

/// Connections in its pool: more of them reduce its throughput on two cores.
const CONNECTIONS: u16 = 64;

pub struct OmniqueueRedis {
    place: Place,
}

fn config(place: &Place) -> RedisConfig {
    RedisConfig {
        dsn: place.url.clone(),
        max_connections: CONNECTIONS,
        reinsert_on_nack: false,
        queue_key: place.name.clone(),
        delayed_queue_key: format!("{}-delayed", place.name),
        delayed_lock_key: format!("{}-delayed-lock", place.name),
        consumer_group: place.group(),
        consumer_name: "one".to_owned(),
        payload_key: "payload".to_owned(),
        ack_deadline_ms: 60_000,
        dlq_config: None,
        sentinel_config: None,
    }
}

impl Contestant for OmniqueueRedis {
    type Publisher = OmniPublisher;
    type Consumer = OmniConsumer;

    async fn open(place: &Place) -> Result<Self> {
        raw_redis::prepare(place).await?;
        Ok(Self { place: place.clone() })
    }

    async fn publisher(&self) -> Result<OmniPublisher> {
        let producer = RedisBackend::builder(config(&self.place)).build_producer().await?;
        Ok(OmniPublisher { producer: Arc::new(producer) })
    }

    async fn consumer(&self) -> Result<OmniConsumer> {
        Ok(OmniConsumer { consumer: RedisBackend::builder(config(&self.place)).build_consumer().await? })
    }

    async fn unsettled(&self) -> Result<u64> {
        raw_redis::left(&self.place).await
    }
}

pub struct OmniPublisher {
    producer: Arc<RedisProducer<RedisConnectionManager>>,
}

impl Publisher for OmniPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let (producer, payload) = (self.producer.clone(), payload.clone());
        in_tasks(total, window, move || {
            let (producer, payload) = (producer.clone(), payload.clone());
            async move { Ok(producer.send_raw(&payload).await?) }
        })
        .await
    }
}

pub struct OmniConsumer {
    consumer: RedisConsumer<RedisConnectionManager>,
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
            // One at a time is one read each; otherwise a batch is read and acknowledged together.
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
        Ok(())
    }
}
