//! Benchmarks the RabbitMQ transport against raw lapin on the same server:
//! `cargo bench -p event-client --bench rabbitmq`.
//!
//! The raw client publishes the same bytes and properties to a queue with the same arguments. Rounds
//! alternate, so that other load on the machine slows both. `BENCH_ROUNDS` and `BENCH_MESSAGES` change the
//! length, `BENCH_NEW=1` selects the newer server, `BENCH_ONLY=` the rows whose names contain it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_client::codec::Codec;
use event_client::transport;
use futures_util::{StreamExt, poll};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use test_servers::Rabbit;

mod common;

use common::{
    BenchResult, Bus, CONTENT_TYPE, Failure, SUBJECT, Side, Table, consume, found, full, generation, latency,
    print_latency, publish_typed, publish_window, quantiles, requests, serve_typed, setting, spec, wanted,
};

const EXCHANGE: &str = "raw.evt";

/// The raw client: one connection that publishes, one that consumes.
struct Raw {
    publish: Connection,
    consume: Connection,
}

impl Raw {
    async fn connect(url: &str) -> Result<Self, Failure> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        let raw = Self { publish: connect().await?, consume: connect().await? };
        let channel = raw.publish.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default())
            .await?;
        Ok(raw)
    }

    /// Declares a queue with the arguments of a group's queue.
    async fn queue(&self, name: &str) -> Result<(), Failure> {
        let channel = self.consume.create_channel().await?;
        let mut table = FieldTable::default();
        let word = |text: &str| AMQPValue::LongString(text.into());
        table.insert("x-queue-type".into(), word("quorum"));
        table.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(100));
        table.insert("x-overflow".into(), word("reject-publish"));
        table.insert("x-dead-letter-strategy".into(), word("at-least-once"));
        table.insert("x-dead-letter-exchange".into(), word(""));
        table.insert("x-dead-letter-routing-key".into(), word("raw.dlq"));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.into(), durable, table).await?;
        let options = QueueBindOptions::default();
        channel
            .queue_bind(name.into(), EXCHANGE.into(), "orders.*.#".into(), options, FieldTable::default())
            .await?;
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let channel = self.consume.create_channel().await?;
        channel.queue_delete(name.into(), lapin::options::QueueDeleteOptions::default()).await?;
        Ok(())
    }

    async fn confirming(&self) -> Result<Channel, Failure> {
        let channel = self.publish.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Publishes with a sliding window: a publish is written by its first poll and awaited when the window is
    /// full.
    async fn publish(&self, total: usize, size: usize, window: usize) -> BenchResult {
        let channel = self.confirming().await?;
        let body: Arc<[u8]> = vec![7u8; size].into();
        let start = Instant::now();
        let mut waiting = VecDeque::with_capacity(window);
        for _ in 0..total {
            if waiting.len() == window
                && let Some(first) = waiting.pop_front()
            {
                confirmed(first).await?;
            }
            let (channel, body) = (channel.clone(), body.clone());
            let mut sending: Sending = Box::pin(async move {
                let options = BasicPublishOptions::default();
                let (exchange, key) = (EXCHANGE.into(), SUBJECT.into());
                channel.basic_publish(exchange, key, options, &body, properties()).await?.await
            });
            let _ = poll!(Pin::new(&mut sending));
            waiting.push_back(sending);
        }
        for sending in waiting {
            confirmed(sending).await?;
        }
        Ok(total as f64 / start.elapsed().as_secs_f64())
    }

    /// Acknowledges 64 deliveries with one `basic.ack` (`multiple`).
    async fn consume(&self, queue: &str, total: usize) -> BenchResult {
        let start = Instant::now();
        let channel = self.consume.create_channel().await?;
        channel.basic_qos(256, BasicQosOptions::default()).await?;
        let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer = channel.basic_consume(queue.into(), "raw".into(), options, table).await?;
        for seen in 1..=total {
            let delivery = consumer.next().await.ok_or("it ended")??;
            std::hint::black_box(&delivery.data);
            if seen % 64 == 0 || seen == total {
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
            }
        }
        let rate = total as f64 / start.elapsed().as_secs_f64();
        channel.close(200, "done".into()).await?;
        Ok(rate)
    }

    async fn latency(&self, queue: &str, rounds: usize) -> Result<Vec<f64>, Failure> {
        let (writer, reader) = (self.confirming().await?, self.consume.create_channel().await?);
        reader.basic_qos(16, BasicQosOptions::default()).await?;
        let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer = reader.basic_consume(queue.into(), "raw".into(), options, table).await?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let start = Instant::now();
            let body = [7; 256];
            let sending = async {
                let options = BasicPublishOptions::default();
                writer
                    .basic_publish(EXCHANGE.into(), SUBJECT.into(), options, &body, properties())
                    .await?
                    .await
            };
            let (delivery, sent) = tokio::join!(async { (consumer.next().await, start.elapsed()) }, sending);
            times.push(delivery.1.as_secs_f64() * 1e6);
            sent?;
            delivery.0.ok_or("it ended")??.ack(BasicAckOptions::default()).await?;
        }
        reader.close(200, "done".into()).await?;
        Ok(times)
    }
}

type Sending = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

async fn confirmed(sending: Sending) -> Result<(), Failure> {
    match sending.await? {
        Confirmation::Ack(_) => Ok(()),
        other => Err(format!("not stored: {other:?}").into()),
    }
}

/// The properties that the transport sends with the same message.
fn properties() -> BasicProperties {
    let now = jiff::Timestamp::now();
    let mut table = FieldTable::default();
    table.insert("bus-published".into(), AMQPValue::LongLongInt(now.as_millisecond()));
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(CONTENT_TYPE.into())
        .with_message_id(uuid::Uuid::now_v7().to_string().into())
        .with_timestamp(u64::try_from(now.as_second()).unwrap_or_default())
        .with_headers(table)
}

/// Runs the rows with opaque bytes of one size.
async fn opaque(
    table: &mut Table,
    url: &str,
    round: usize,
    size: usize,
    total: usize,
) -> Result<(), Failure> {
    let raw = Raw::connect(url).await?;
    let queue = format!("raw-{round}-{size}");
    let ours: Bus = transport::open(format!("{url}?namespace=bench-{round}-{size}").parse()?).await?;
    raw.queue(&queue).await?;
    found(&ours, "g").await?;
    let name = format!("publish, window 256, {size} B");
    table.run(&name, Side::Raw, total, raw.publish(total, size, 256)).await?;
    table.run(&name, Side::Ours, total, publish_window(&ours, total, size, 256)).await?;
    let name = format!("consume + ack, 1 worker, {size} B");
    table.run(&name, Side::Raw, total, raw.consume(&queue, total)).await?;
    table.run(&name, Side::Ours, total, consume(&ours, total, 1, spec("g", 256))).await?;
    publish_window(&ours, total, size, 256).await?;
    raw.publish(total, size, 256).await?;
    let name = format!("consume + ack, 64 workers, {size} B");
    table.run(&name, Side::Ours, total, consume(&ours, total / 64 * 64, 64, spec("g", 256))).await?;
    table.run(&name, Side::Raw, total, raw.consume(&queue, total)).await?;
    let few = total / 20;
    let name = format!("publish, one at a time, {size} B");
    table.run(&name, Side::Raw, few, raw.publish(few, size, 1)).await?;
    table.run(&name, Side::Ours, few, publish_window(&ours, few, size, 1)).await?;
    raw.delete(&queue).await?;
    let group = event_client::subject::Group::new("g")?;
    ours.admin().delete_group(group).await?;
    ours.close().await?;
    Ok(())
}

/// Runs the rows with typed events through a whole service, against opaque bytes through raw lapin.
async fn typed(table: &mut Table, url: &str, round: usize, size: usize, total: usize) -> Result<(), Failure> {
    for (spelling, codec) in [("json", Codec::Json), ("msgpack", Codec::MsgPack)] {
        let raw = Raw::connect(url).await?;
        let queue = format!("typed-{round}-{size}-{spelling}");
        let url = format!("{url}?namespace=typed-{round}-{size}-{spelling}");
        let bus = full(&url, codec).await?;
        let transport: Bus = transport::open(url.parse()?).await?;
        raw.queue(&queue).await?;
        found(&transport, "g").await?;
        let name = format!("service publishes, {spelling}, {size} B");
        // The envelope adds about 300 bytes to the event.
        table.run(&name, Side::Raw, total, raw.publish(total, size + 300, 256)).await?;
        table.run(&name, Side::Ours, total, publish_typed(&bus, total, size)).await?;
        let name = format!("service handles, {spelling}, {size} B");
        table.run(&name, Side::Raw, total, raw.consume(&queue, total)).await?;
        table.run(&name, Side::Ours, total, serve_typed(&bus, total, "g")).await?;
        raw.delete(&queue).await?;
        transport.admin().delete_group(event_client::subject::Group::new("g")?).await?;
        transport.close().await?;
        bus.close().await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds = setting("BENCH_ROUNDS", 3);
    let most = setting("BENCH_MESSAGES", 20_000);
    let server = Rabbit::options().generation(generation()).start().await?;
    let url = server.url();
    let mut table = Table::new(server.id().ok_or("the server has no process")?);
    for round in 0..rounds {
        for (size, total) in [(256, most), (4096, most / 2)] {
            if wanted("opaque") {
                opaque(&mut table, &url, round, size, total).await?;
            }
            if wanted("typed") && size == 256 {
                typed(&mut table, &url, round, size, total).await?;
            }
        }
    }
    table.print();
    let bus: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    let other: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    if wanted("latency") {
        let raw = Raw::connect(&url).await?;
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let queue = format!("latency-{round}");
            raw.queue(&queue).await?;
            theirs.extend(raw.latency(&queue, 200).await?);
            raw.delete(&queue).await?;
            ours.extend(latency(&bus, 200).await?);
        }
        print_latency(theirs, ours);
    }
    if wanted("requests") {
        let (times, rate) = requests(&bus, &other, 2000).await?;
        let (p50, p99) = quantiles(times);
        println!("request and reply: one at a time p50 {p50:.0} us p99 {p99:.0} us; 64 at once {rate:.0}/s");
    }
    Ok(())
}
