//! Benchmarks the Redis transport against the raw client on the same server:
//! `cargo bench -p event-client --bench redis`.
//!
//! The raw client sends the same fields in the way that is fastest for it. Rounds alternate, so that other
//! load on the machine slows both. `BENCH_ROUNDS` and `BENCH_MESSAGES` change the length, `BENCH_FSYNC=1` the
//! durability class (`appendfsync always`), `BENCH_NEW=1` selects the newer server,
//! `BENCH_ONLY=opaque,tasks,typed,latency,requests` some of the rows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use event_client::codec::Codec;
use event_client::transport::{self, Start};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Cmd, IntoConnectionInfo, Pipeline, Value};
use test_servers::Redis;

mod common;

use common::{
    BenchResult, Bus, CONTENT_TYPE, Failure, SUBJECT, Side, Table, at_once, consume, full, generation,
    latency, message, print_latency, publish_typed, publish_window, quantiles, requests, serve_typed,
    setting, spec, wanted,
};

/// Entries of one read, acknowledged with the next read: as many as services handle at a time.
const BATCH: usize = 64;
/// Commands of one pipeline: four pipelines are a window of 256.
const COMMANDS: usize = 64;

async fn connection(url: &str) -> Result<MultiplexedConnection, Failure> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let info = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?)
}

/// The `XADD` of a message, with the fields that the transport writes.
fn xadd(key: &str, body: &[u8]) -> Cmd {
    let mut command = Cmd::with_capacity(11, body.len() + 256);
    let id = uuid::Uuid::now_v7();
    command.arg("XADD").arg(key).arg("*").arg("bus-subject").arg(SUBJECT);
    command.arg("content-type").arg(CONTENT_TYPE);
    command.arg("ce-id").arg(&*id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    command.arg("data").arg(body);
    command
}

/// Publishes in pipelines, four in flight: together no more unconfirmed messages than the transport may have.
async fn raw_publish(url: &str, key: &str, total: usize, size: usize) -> BenchResult {
    let connection = connection(url).await?;
    let body = vec![7u8; size];
    let start = Instant::now();
    let mut flying = VecDeque::new();
    let mut left = total;
    while left > 0 {
        if flying.len() == 4
            && let Some(done) = flying.pop_front()
        {
            let done: tokio::task::JoinHandle<redis::RedisResult<Vec<Value>>> = done;
            done.await??;
        }
        let batch = left.min(COMMANDS);
        left -= batch;
        let mut pipeline = Pipeline::with_capacity(batch);
        for _ in 0..batch {
            pipeline.add_command(xadd(key, &body));
        }
        let mut connection = connection.clone();
        flying.push_back(tokio::spawn(
            async move { connection.send_packed_commands(&pipeline, 0, batch).await },
        ));
    }
    for done in flying {
        done.await??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Publishes from tasks that share one multiplexed connection, each awaiting its reply: the simple way.
async fn raw_tasks(url: &str, key: &str, total: usize, size: usize, tasks: usize) -> BenchResult {
    let connection = connection(url).await?;
    let start = Instant::now();
    at_once(tasks, || {
        let (mut connection, key, body) = (connection.clone(), key.to_owned(), vec![7u8; size]);
        async move {
            for _ in 0..total / tasks {
                connection.send_packed_command(&xadd(&key, &body)).await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

async fn tasks(bus: &Bus, total: usize, size: usize, tasks: usize) -> BenchResult {
    let start = Instant::now();
    at_once(tasks, || {
        let bus = bus.clone();
        async move {
            for _ in 0..total / tasks {
                bus.publish(message(size)).await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Reads a batch and acknowledges it with the next read; the replies are not decoded.
async fn raw_consume(url: &str, key: &str, total: usize) -> BenchResult {
    let mut connection = connection(url).await?;
    redis::cmd("XGROUP").arg("DESTROY").arg(key).arg("raw").exec_async(&mut connection).await?;
    redis::cmd("XGROUP").arg("CREATE").arg(key).arg("raw").arg("0").exec_async(&mut connection).await?;
    let start = Instant::now();
    let (mut seen, mut ids) = (0, Vec::new());
    while seen < total {
        let mut pipeline = Pipeline::with_capacity(2);
        if !ids.is_empty() {
            pipeline.cmd("XACK").arg(key).arg("raw").arg(std::mem::take(&mut ids)).ignore();
        }
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("raw").arg("me").arg("COUNT").arg(BATCH);
        pipeline.arg("STREAMS").arg(key).arg(">");
        let replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        let Some(Value::Array(streams)) = replies.into_iter().last() else { return Err("no entries".into()) };
        let Some(Value::Array(stream)) = streams.into_iter().next() else { return Err("no stream".into()) };
        let Some(Value::Array(entries)) = stream.into_iter().nth(1) else { return Err("no entries".into()) };
        for entry in entries {
            let Value::Array(entry) = entry else { continue };
            let Some(Value::BulkString(id)) = entry.into_iter().next() else { continue };
            ids.push(id);
            seen += 1;
        }
    }
    redis::cmd("XACK").arg(key).arg("raw").arg(ids).exec_async(&mut connection).await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Measures publish to read on an idle server, in microseconds, with one connection that blocks and one that
/// publishes.
async fn raw_latency(url: &str, key: &str, rounds: usize) -> Result<Vec<f64>, Failure> {
    let (mut reader, mut writer) = (connection(url).await?, connection(url).await?);
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg(key).arg("lat").arg("$").arg("MKSTREAM").exec_async(&mut reader).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut ask = redis::cmd("XREADGROUP");
        ask.arg("GROUP").arg("lat").arg("me").arg("COUNT").arg(1).arg("BLOCK").arg(5000);
        ask.arg("STREAMS").arg(key).arg(">");
        let mut blocked = reader.clone();
        let reading = tokio::spawn(async move { blocked.send_packed_command(&ask).await });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        let command = xadd(key, &[7; 256]);
        let (read, published) =
            tokio::join!(async { (reading.await, start.elapsed()) }, writer.send_packed_command(&command));
        read.0??;
        published?;
        times.push(read.1.as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Runs the rows with opaque bytes through the transport.
async fn opaque(
    table: &mut Table,
    url: &str,
    round: usize,
    size: usize,
    total: usize,
) -> Result<(), Failure> {
    let ours: Bus = transport::open(format!("{url}?namespace=bench-{round}-{size}").parse()?).await?;
    let key = format!("raw-{round}-{size}");
    let name = format!("publish, window 256, {size} B");
    table.run(&name, Side::Raw, total, raw_publish(url, &key, total, size)).await?;
    table.run(&name, Side::Ours, total, publish_window(&ours, total, size, 256)).await?;
    for workers in [1, 64] {
        let name = format!("consume + ack, {workers} at a time, {size} B");
        let mut spec = spec(&format!("g-{workers}"), 256);
        spec.start = Start::Earliest;
        table.run(&name, Side::Raw, total, raw_consume(url, &key, total)).await?;
        table.run(&name, Side::Ours, total, consume(&ours, total / workers * workers, workers, spec)).await?;
    }
    Ok(ours.close().await?)
}

/// Runs publishers that wait for each confirmation.
async fn one_by_one(
    table: &mut Table,
    url: &str,
    round: usize,
    size: usize,
    total: usize,
) -> Result<(), Failure> {
    let ours: Bus = transport::open(format!("{url}?namespace=tasks-{round}-{size}").parse()?).await?;
    let key = format!("tasks-{round}-{size}");
    for (many, total) in [(64, total), (1, total / 20)] {
        let name = format!("publish, {many} at a time, {size} B");
        table.run(&name, Side::Raw, total, raw_tasks(url, &key, total, size, many)).await?;
        table.run(&name, Side::Ours, total, tasks(&ours, total, size, many)).await?;
    }
    Ok(ours.close().await?)
}

/// Runs the rows with typed events through a whole service, against opaque bytes through the raw client.
async fn typed(table: &mut Table, url: &str, round: usize, size: usize, total: usize) -> Result<(), Failure> {
    for (spelling, codec) in [("json", Codec::Json), ("msgpack", Codec::MsgPack)] {
        let namespace = format!("typed-{round}-{size}-{spelling}");
        let bus = full(&format!("{url}?namespace={namespace}"), codec).await?;
        let mut spec = spec("g", 1);
        spec.start = Start::Earliest;
        drop(bus.subscribe(spec).await?);
        let name = format!("service publishes, {spelling}, {size} B");
        // The envelope adds about 300 bytes to the event.
        table.run(&name, Side::Raw, total, raw_publish(url, &namespace, total, size + 300)).await?;
        table.run(&name, Side::Ours, total, publish_typed(&bus, total, size)).await?;
        let name = format!("service handles, {spelling}, {size} B");
        table.run(&name, Side::Raw, total, raw_consume(url, &namespace, total)).await?;
        table.run(&name, Side::Ours, total, serve_typed(&bus, total, "g")).await?;
        bus.close().await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds = setting("BENCH_ROUNDS", 3);
    let most = setting("BENCH_MESSAGES", 100_000);
    let mut options = Redis::options().generation(generation()).line("save \"\"");
    if setting("BENCH_FSYNC", 0) == 1 {
        options = options.fsync();
    }
    let server = options.start().await?;
    let url = server.url();
    let mut table = Table::new(server.id().ok_or("the server has no process")?);
    for round in 0..rounds {
        for (size, total) in [(256, most), (4096, most / 4)] {
            if wanted("opaque") {
                opaque(&mut table, &url, round, size, total).await?;
            }
            if wanted("tasks") {
                one_by_one(&mut table, &url, round, size, total).await?;
            }
            if wanted("typed") && size == 256 {
                typed(&mut table, &url, round, size, total).await?;
            }
            redis::cmd("FLUSHALL").exec_async(&mut connection(&url).await?).await?;
        }
    }
    table.print();
    let bus: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    let other: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    if wanted("latency") {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            raw.extend(raw_latency(&url, &format!("lat-{round}"), 200).await?);
            ours.extend(latency(&bus, 200).await?);
        }
        print_latency(raw, ours);
    }
    if wanted("requests") {
        let (times, rate) = requests(&bus, &other, 2000).await?;
        let (p50, p99) = quantiles(times);
        println!("request and reply: one at a time p50 {p50:.0} us p99 {p99:.0} us; 64 at once {rate:.0}/s");
    }
    Ok(())
}
