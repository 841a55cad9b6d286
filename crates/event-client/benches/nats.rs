//! Benchmarks the NATS transport against raw async-nats on the same server:
//! `cargo bench -p event-client --bench nats`.
//!
//! The raw client publishes the same bytes and headers to a stream with the same settings, reads through a
//! durable pull consumer with the same settings and has the same number of messages in flight; where each
//! message costs an fsync and the server accepts atomic batches, the raw client publishes in batches. Rounds
//! alternate, so that other load on the machine slows both.
//! `BENCH_ROUNDS` and `BENCH_MESSAGES` change the length, `BENCH_FSYNC=1` the durability class
//! (`sync_interval: always`), `BENCH_NEW=1` selects the newer server,
//! `BENCH_ONLY=opaque,typed,latency,requests` some of the rows and `BENCH_SIZE=` one size of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, AckKind, Context, stream};
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use event_client::codec::Codec;
use event_client::transport::{self, Start, Subscribe};
use futures_util::{StreamExt, TryStreamExt};
use test_servers::Nats;

mod common;

use common::{
    BenchResult, Bus, CONTENT_TYPE, Calls, Failure, SUBJECT, Side, Table, at_once, calls, consume, full,
    generation, latency, print_latency, publish_typed, publish_window, quantiles, requests, serve_typed,
    setting, spec, wanted,
};

/// Messages that the raw client pulls at a time; it pulls again when half of them have arrived.
const CREDIT: usize = 256;
/// Messages that the transport may hold: as many as the raw client has in flight at most.
const HELD: usize = CREDIT + CREDIT / 2;

async fn connect(url: &str) -> Result<Client, Failure> {
    let options = async_nats::ConnectOptions::new().client_capacity(8192).skip_subject_validation(true);
    Ok(options.connect(url).await?)
}

/// The headers that the transport sends with the same message.
fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", CONTENT_TYPE);
    let id = uuid::Uuid::now_v7();
    headers.insert("ce-id", &*id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    headers
}

/// Returns whether the server fsyncs each message and accepts atomic batches.
fn batches() -> bool {
    setting("BENCH_FSYNC", 0) + setting("BENCH_NEW", 0) == 2
}

/// Checks that the server stored a batch.
fn stored(reply: &async_nats::Message) -> Result<(), Failure> {
    let text = std::str::from_utf8(&reply.payload)?;
    if text.contains("error") { Err(text.into()) } else { Ok(()) }
}

/// Returns the URL options for a separate namespace.
fn options(namespace: &str) -> String {
    let sync = if setting("BENCH_FSYNC", 0) == 1 { "&sync=always" } else { "" };
    format!("namespace={namespace}{sync}")
}

/// The raw client: one connection, and a stream with the settings that the transport uses.
struct Raw {
    client: Client,
    context: Context,
    stream: stream::Stream,
    name: String,
    subject: Subject,
}

impl Raw {
    async fn open(url: &str, name: &str) -> Result<Self, Failure> {
        let client = connect(url).await?;
        let context = jetstream::new(client.clone());
        let config = stream::Config {
            name: name.into(),
            subjects: vec![format!("{name}.evt.orders"), format!("{name}.evt.orders.>")],
            max_age: Duration::from_hours(7 * 24),
            duplicate_window: Duration::from_secs(120),
            allow_atomic_publish: batches(),
            ..stream::Config::default()
        };
        let stream = context.create_stream(config).await?;
        let subject = Subject::from(format!("{name}.evt.{SUBJECT}"));
        Ok(Self { client, context, stream, name: name.into(), subject })
    }

    /// Publishes a whole window as an atomic batch: the fastest way where each message costs an fsync.
    async fn publish_batches(&self, total: usize, size: usize, window: usize) -> BenchResult {
        let body = Bytes::from(vec![7u8; size]);
        let start = Instant::now();
        let mut left = total;
        while left > 0 {
            let count = left.min(window);
            left -= count;
            let id = uuid::Uuid::now_v7().simple().to_string();
            for at in 1..=count {
                let (subject, body, mut headers) = (self.subject.clone(), body.clone(), headers());
                headers.insert("Nats-Batch-Id", id.as_str());
                headers.insert("Nats-Batch-Sequence", at.to_string());
                if at < count {
                    self.client.publish_with_headers(subject, headers, body).await?;
                } else {
                    headers.insert("Nats-Batch-Commit", "1");
                    stored(&self.client.request_with_headers(subject, headers, body).await?)?;
                }
            }
        }
        Ok(total as f64 / start.elapsed().as_secs_f64())
    }

    /// Publishes with a sliding window of unconfirmed publishes.
    async fn publish(&self, total: usize, size: usize, window: usize) -> BenchResult {
        if batches() && window > 1 {
            return self.publish_batches(total, size, window).await;
        }
        let body = Bytes::from(vec![7u8; size]);
        let start = Instant::now();
        let mut waiting: VecDeque<PublishAckFuture> = VecDeque::with_capacity(window);
        for _ in 0..total {
            if waiting.len() == window
                && let Some(first) = waiting.pop_front()
            {
                first.await?;
            }
            let sent = self.context.publish_with_headers(self.subject.clone(), headers(), body.clone());
            waiting.push_back(sent.await?);
        }
        for sending in waiting {
            sending.await?;
        }
        Ok(total as f64 / start.elapsed().as_secs_f64())
    }

    async fn consumer(&self, name: &str) -> Result<Consumer<pull::Config>, Failure> {
        let config = pull::Config {
            durable_name: Some(name.into()),
            filter_subject: format!("{}.evt.orders.>", self.name),
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 100_000,
            max_waiting: 512,
            ..pull::Config::default()
        };
        Ok(self.stream.create_consumer(config).await?)
    }

    /// Acknowledges each message without waiting; only the last ack is confirmed.
    async fn consume(&self, group: &str, total: usize) -> BenchResult {
        let start = Instant::now();
        let consumer = self.consumer(group).await?;
        let mut messages = consumer.stream().max_messages_per_batch(CREDIT).messages().await?;
        for _ in 1..total {
            messages.next().await.ok_or("it ended")??.ack().await?;
        }
        messages.next().await.ok_or("it ended")??.double_ack().await?;
        Ok(total as f64 / start.elapsed().as_secs_f64())
    }

    /// Waits for the confirmation of each ack, with `workers` acks at a time. One inbox receives all
    /// confirmations.
    async fn consume_sure(&self, group: &str, total: usize, workers: usize) -> BenchResult {
        let start = Instant::now();
        let consumer = self.consumer(group).await?;
        let messages = consumer.stream().max_messages_per_batch(CREDIT).messages().await?;
        let client = &self.client;
        messages
            .take(total)
            .map_err(Failure::from)
            .try_for_each_concurrent(workers, |message| async move {
                let reply = message.reply.clone().ok_or("no reply subject")?;
                client.request(reply, AckKind::Ack.into()).await?;
                Ok(())
            })
            .await?;
        Ok(total as f64 / start.elapsed().as_secs_f64())
    }

    /// Measures publish to read on an idle server, in microseconds.
    async fn latency(&self, rounds: usize) -> Result<Vec<f64>, Failure> {
        let consumer = self.consumer("latency").await?;
        let mut messages = consumer.stream().max_messages_per_batch(16).messages().await?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let start = Instant::now();
            let sending = async {
                let body = Bytes::from(vec![7u8; 256]);
                self.context.publish_with_headers(self.subject.clone(), headers(), body).await?.await
            };
            let (read, sent) = tokio::join!(async { (messages.next().await, start.elapsed()) }, sending);
            times.push(read.1.as_secs_f64() * 1e6);
            sent?;
            read.0.ok_or("it ended")??.double_ack().await?;
        }
        Ok(times)
    }
}

/// Like [`requests`] of the transport: microseconds of each call, one at a time, and calls per second with 64
/// at the same time.
async fn raw_requests(url: &str, rounds: usize) -> Result<Calls, Failure> {
    let (client, other) = (connect(url).await?, connect(url).await?);
    let mut incoming = other.queue_subscribe("raw.rpc.shop.quote", "shop".into()).await?;
    other.flush().await?;
    let serving = tokio::spawn(async move {
        while let Some(request) = incoming.next().await {
            let Some(reply) = request.reply else { continue };
            let mut headers = HeaderMap::new();
            headers.insert("content-type", "x/y");
            drop(other.publish_with_headers(reply, headers, request.payload).await);
        }
    });
    let call = |client: Client| async move {
        client.request_with_headers("raw.rpc.shop.quote", headers(), vec![7u8; 256].into()).await?;
        Ok::<_, Failure>(())
    };
    // The server may not have registered the subscription yet.
    while call(client.clone()).await.is_err() {}
    let measured = calls(rounds, move || call(client.clone())).await;
    serving.abort();
    measured
}

/// A group that receives all messages from the first on.
fn all(group: &str, max_in_flight: usize) -> Subscribe {
    let mut spec = spec(group, max_in_flight);
    spec.start = Start::Earliest;
    spec
}

/// Consumes through the transport; each worker waits for the confirmation of its ack before it continues.
async fn consume_sure(bus: &Bus, total: usize, workers: usize, spec: Subscribe) -> BenchResult {
    let start = Instant::now();
    let subscription = bus.subscribe(spec).await?;
    at_once(workers, || {
        let subscription = subscription.clone();
        async move {
            for _ in 0..total / workers {
                subscription.next().await.ok_or("it ended")?.ack().await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Runs the rows with opaque bytes through the transport.
async fn opaque(
    table: &mut Table,
    url: &str,
    round: usize,
    size: usize,
    total: usize,
) -> Result<(), Failure> {
    let raw = Raw::open(url, &format!("raw-{round}-{size}")).await?;
    let ours: Bus =
        transport::open(format!("{url}?{}", options(&format!("bench-{round}-{size}"))).parse()?).await?;
    let name = format!("publish, window 256, {size} B");
    table.run(&name, Side::Raw, total, raw.publish(total, size, 256)).await?;
    table.run(&name, Side::Ours, total, publish_window(&ours, total, size, 256)).await?;
    let name = format!("publish, one at a time, {size} B");
    let few = total / 20;
    table.run(&name, Side::Raw, few, raw.publish(few, size, 1)).await?;
    table.run(&name, Side::Ours, few, publish_window(&ours, few, size, 1)).await?;
    for workers in [1, 64] {
        let name = format!("consume + ack, {workers} at a time, {size} B");
        let (total, group) = (total / workers * workers, format!("g-{workers}"));
        table.run(&name, Side::Raw, total, raw.consume(&group, total)).await?;
        table.run(&name, Side::Ours, total, consume(&ours, total, workers, all(&group, HELD))).await?;
    }
    let name = format!("consume + confirmed ack, 64, {size} B");
    let total = total / 64 * 64;
    table.run(&name, Side::Raw, total, raw.consume_sure("sure", total, 64)).await?;
    table.run(&name, Side::Ours, total, consume_sure(&ours, total, 64, all("sure", HELD))).await?;
    Ok(ours.close().await?)
}

/// Runs the rows with typed events through a whole service, against opaque bytes through the raw client.
async fn typed(table: &mut Table, url: &str, round: usize, size: usize, total: usize) -> Result<(), Failure> {
    for (spelling, codec) in [("json", Codec::Json), ("msgpack", Codec::MsgPack)] {
        let raw = Raw::open(url, &format!("raw-typed-{round}-{spelling}")).await?;
        let bus = full(&format!("{url}?{}", options(&format!("typed-{round}-{spelling}"))), codec).await?;
        drop(bus.subscribe(all("g", 1)).await?);
        let name = format!("service publishes, {spelling}, {size} B");
        // The envelope adds about 300 bytes to the event.
        table.run(&name, Side::Raw, total, raw.publish(total, size + 300, 256)).await?;
        table.run(&name, Side::Ours, total, publish_typed(&bus, total, size)).await?;
        let name = format!("service handles, {spelling}, {size} B");
        table.run(&name, Side::Raw, total, raw.consume("g", total)).await?;
        table.run(&name, Side::Ours, total, serve_typed(&bus, total, "g")).await?;
        bus.close().await?;
    }
    Ok(())
}

/// Deletes all streams, to free disk space.
async fn clear(url: &str) -> Result<(), Failure> {
    let context = jetstream::new(connect(url).await?);
    let names: Vec<String> = context.stream_names().try_collect().await?;
    for name in names {
        context.delete_stream(&name).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds = setting("BENCH_ROUNDS", 3);
    let most = setting("BENCH_MESSAGES", 100_000);
    let one_size = setting("BENCH_SIZE", 0);
    let mut server = Nats::options().generation(generation());
    if setting("BENCH_FSYNC", 0) == 1 {
        server = server.fsync();
    }
    let server = server.start().await?;
    let url = server.url();
    let mut table = Table::new(server.id().ok_or("the server has no process")?);
    for round in 0..rounds {
        for (size, total) in [(256, most), (4096, most / 4)] {
            if wanted("opaque") && (one_size == 0 || one_size == size) {
                opaque(&mut table, &url, round, size, total).await?;
                clear(&url).await?;
            }
            if wanted("typed") && size == 256 {
                typed(&mut table, &url, round, size, total).await?;
                clear(&url).await?;
            }
        }
    }
    table.print();
    let bus: Bus = transport::open(format!("{url}?{}", options("latency")).parse()?).await?;
    let other: Bus = transport::open(format!("{url}?{}", options("latency")).parse()?).await?;
    if wanted("latency") {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            theirs.extend(Raw::open(&url, &format!("latency-{round}")).await?.latency(200).await?);
            ours.extend(latency(&bus, 200).await?);
        }
        print_latency(theirs, ours);
    }
    if wanted("requests") {
        let (mut theirs, mut ours) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for _ in 0..rounds {
            for (side, (times, rate)) in [
                (&mut theirs, raw_requests(&url, 2000).await?),
                (&mut ours, requests(&bus, &other, 2000).await?),
            ] {
                side.0.extend(times);
                side.1.push(rate);
            }
        }
        for (name, (times, rates)) in [("raw", theirs), ("ours", ours)] {
            let ((p50, p99), (rate, _)) = (quantiles(times), quantiles(rates));
            println!(
                "request and reply, {name}: one at a time p50 {p50:.0} us p99 {p99:.0} us; 64 at once {rate:.0}/s"
            );
        }
    }
    Ok(())
}
