//! The Redis transport beside the raw client on the same server: `cargo bench -p event-client --bench redis`.
//!
//! Raw sends the same fields in the client's best shape. Rounds alternate, so that a busy neighbour hurts both.
//! `BENCH_ROUNDS` and `BENCH_MESSAGES` change the length, `BENCH_FSYNC=1` the durability class (`appendfsync always`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_client::confirm::Confirm;
use event_client::message::{Headers, Message};
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{self, Frame, Receipt, Serve, Start, Subscribe, Transport};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::task::JoinSet;

type Bus = Arc<dyn Transport>;
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<f64, Failure>;

const SUBJECT: &str = "orders.placed.v1";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn message(size: usize) -> Message {
    Message::new(Subject::new(SUBJECT).expect("valid"), "application/cloudevents+json", vec![7u8; size])
}

fn spec(name: &str, credit: usize) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("valid"), [Pattern::new("orders.>").expect("valid")]);
    spec.credit = credit;
    spec
}

async fn connection(url: &str) -> Result<MultiplexedConnection, Failure> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

/// The fields of [`message`] as the transport writes them.
fn xadd(pipeline: &mut Pipeline, key: &str, body: &[u8]) {
    let id = uuid::Uuid::now_v7().to_string();
    pipeline
        .cmd("XADD")
        .arg(key)
        .arg("*")
        .arg("bus-subject")
        .arg(SUBJECT)
        .arg("content-type")
        .arg("application/cloudevents+json")
        .arg("ce-id")
        .arg(id)
        .arg("data")
        .arg(body);
}

/// Pipelines of 100, four on their way: the best shape of the client.
async fn raw_publish(url: &str, key: &str, total: usize, size: usize) -> Outcome {
    let connection = connection(url).await?;
    let body = vec![7u8; size];
    let start = Instant::now();
    let mut flying = VecDeque::new();
    for _ in 0..total / 100 {
        if flying.len() == 4
            && let Some(done) = flying.pop_front()
        {
            let done: tokio::task::JoinHandle<redis::RedisResult<Vec<Value>>> = done;
            done.await??;
        }
        let mut pipeline = Pipeline::with_capacity(100);
        (0..100).for_each(|_| xadd(&mut pipeline, key, &body));
        let mut connection = connection.clone();
        flying
            .push_back(tokio::spawn(async move { connection.send_packed_commands(&pipeline, 0, 100).await }));
    }
    for done in flying {
        done.await??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Tasks on one multiplexed connection, each awaiting its reply: the plain way.
async fn raw_publish_tasks(url: &str, key: &str, total: usize, size: usize, tasks: usize) -> Outcome {
    let connection = connection(url).await?;
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (mut connection, key, body) = (connection.clone(), key.to_owned(), vec![7u8; size]);
        running.spawn(async move {
            for _ in 0..total / tasks {
                let mut one = Pipeline::new();
                xadd(&mut one, &key, &body);
                one.exec_async(&mut connection).await?;
            }
            Ok::<_, redis::RedisError>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Reads 100 and acknowledges them with the next read; replies stay undecoded values.
async fn raw_consume(url: &str, key: &str, total: usize) -> Outcome {
    let mut connection = connection(url).await?;
    redis::cmd("XGROUP").arg("CREATE").arg(key).arg("raw").arg("0").exec_async(&mut connection).await?;
    let start = Instant::now();
    let (mut seen, mut ids) = (0, Vec::new());
    while seen < total {
        let mut pipeline = Pipeline::new();
        if !ids.is_empty() {
            pipeline.cmd("XACK").arg(key).arg("raw").arg(std::mem::take(&mut ids)).ignore();
        }
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("raw").arg("me").arg("COUNT").arg(100);
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

async fn publish_window(bus: &Bus, total: usize, size: usize, window: usize) -> Outcome {
    let start = Instant::now();
    let mut waiting: VecDeque<Confirm<Receipt>> = VecDeque::with_capacity(window);
    let model = message(size);
    for _ in 0..total {
        if waiting.len() == window
            && let Some(first) = waiting.pop_front()
        {
            first.await?;
        }
        let mut message = model.clone();
        message.id = uuid::Uuid::now_v7().into();
        waiting.push_back(bus.publish(message));
    }
    for confirm in waiting {
        confirm.await?;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

async fn publish_tasks(bus: &Bus, total: usize, size: usize, tasks: usize) -> Outcome {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let bus = bus.clone();
        running.spawn(async move {
            for _ in 0..total / tasks {
                bus.publish(message(size)).await?;
            }
            Ok::<_, event_client::Error>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Takes a backlog in, `workers` at a time, each acknowledging what it took.
async fn consume(bus: &Bus, total: usize, workers: usize, name: &str) -> Outcome {
    let mut spec = spec(name, (workers * 4).max(256));
    spec.start = Start::Earliest;
    let start = Instant::now();
    let subscription = bus.subscribe(spec).await?;
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let subscription = subscription.clone();
        running.spawn(async move {
            let mut last = None;
            for _ in 0..total / workers {
                let Some(delivery) = subscription.next().await else { return Err("it ended".into()) };
                last = Some(delivery.ack());
            }
            if let Some(last) = last {
                last.await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Publish to read, idle, in microseconds: a connection that blocks and one that publishes.
async fn raw_latency(url: &str, key: &str, rounds: usize) -> Result<Vec<f64>, Failure> {
    let (mut reader, mut writer) = (connection(url).await?, connection(url).await?);
    redis::cmd("XGROUP")
        .arg("CREATE")
        .arg(key)
        .arg("lat")
        .arg("$")
        .arg("MKSTREAM")
        .exec_async(&mut reader)
        .await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut ask = redis::cmd("XREADGROUP");
        ask.arg("GROUP").arg("lat").arg("me").arg("COUNT").arg(1).arg("BLOCK").arg(5000);
        ask.arg("STREAMS").arg(key).arg(">");
        let mut blocked = reader.clone();
        let reading = tokio::spawn(async move { blocked.send_packed_command(&ask).await });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        let mut one = Pipeline::new();
        xadd(&mut one, key, &[7; 256]);
        let published = async { one.exec_async(&mut writer).await };
        let (read, published) = tokio::join!(async { (reading.await, start.elapsed()) }, published);
        read.0??;
        published?;
        times.push(read.1.as_secs_f64() * 1e6);
    }
    Ok(times)
}

async fn latency(bus: &Bus, rounds: usize) -> Result<Vec<f64>, Failure> {
    let subscription = bus.subscribe(spec("latency", 16)).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        let confirm = bus.publish(message(256));
        let (delivery, confirmed) =
            tokio::join!(async { (subscription.next().await, start.elapsed()) }, confirm);
        times.push(delivery.1.as_secs_f64() * 1e6);
        confirmed?;
        delivery.0.ok_or("it ended")?.ack().await?;
    }
    Ok(times)
}

async fn requests(bus: &Bus, other: &Bus, rounds: usize) -> Result<(Vec<f64>, f64), Failure> {
    let subjects = vec![Subject::new("shop.quote")?];
    let mut incoming =
        other.requests().serve(Serve { service: "shop".into(), subjects, credit: 128 }).await?;
    let serving = tokio::spawn(async move {
        while let Some(mut request) = incoming.recv().await {
            let payload = request.message.payload.clone();
            let frame = Frame { headers: Headers::new(), content_type: "x/y".into(), payload, last: true };
            drop(request.responder.send(frame));
        }
    });
    let call = |bus: Bus| async move {
        let request = Message::new(Subject::new("shop.quote")?, "x/y", vec![7u8; 256]);
        let mut replies = bus.requests().call(request, Duration::from_secs(30)).await?;
        replies.next().await.ok_or("no answer")??;
        Ok::<_, Failure>(())
    };
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        call(bus.clone()).await?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..64 {
        let bus = bus.clone();
        running.spawn(async move {
            for _ in 0..rounds / 8 {
                call(bus.clone()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    let rate = (64 * (rounds / 8)) as f64 / start.elapsed().as_secs_f64();
    serving.abort();
    Ok((times, rate))
}

/// User and system time of a process so far, in seconds.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// One row: rates of the rounds, and CPU microseconds of client and server for each message.
#[derive(Default)]
struct Row {
    name: String,
    rates: [Vec<f64>; 2],
    cpu: [Vec<(f64, f64)>; 2],
}

struct Table {
    rows: Vec<Row>,
    server: String,
}

impl Table {
    async fn run(
        &mut self,
        name: &str,
        which: usize,
        total: usize,
        work: impl Future<Output = Outcome>,
    ) -> Result<(), Failure> {
        let before = (cpu("self"), cpu(&self.server));
        let rate = work.await?;
        let used = (cpu("self") - before.0, cpu(&self.server) - before.1);
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                self.rows.push(Row { name: name.into(), ..Row::default() });
                self.rows.len() - 1
            }
        };
        self.rows[at].rates[which].push(rate);
        self.rows[at].cpu[which].push((used.0 * 1e6 / total as f64, used.1 * 1e6 / total as f64));
        Ok(())
    }

    fn print(&mut self) {
        println!("{:<34} {:>9} {:>9} {:>6}   us/message client/server", "", "raw", "ours", "ratio");
        for row in &mut self.rows {
            let median = |values: &mut Vec<f64>| {
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
            };
            let [raw, ours] = &mut row.rates;
            let (raw, ours) = (median(raw), median(ours));
            let costs = row.cpu.each_mut().map(|cpu| {
                cpu.sort_by(|a, b| a.0.total_cmp(&b.0));
                cpu.get(cpu.len() / 2).copied().unwrap_or((f64::NAN, f64::NAN))
            });
            println!(
                "{:<34} {raw:>9.0} {ours:>9.0} {:>6.2}   raw {:.1}/{:.1} ours {:.1}/{:.1}",
                row.name,
                ours / raw,
                costs[0].0,
                costs[0].1,
                costs[1].0,
                costs[1].1
            );
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds = setting("BENCH_ROUNDS", 3);
    let most = setting("BENCH_MESSAGES", 100_000);
    let mut options = test_servers::Redis::options().line("save \"\"");
    if setting("BENCH_FSYNC", 0) == 1 {
        options = options.fsync();
    }
    let server = options.start().await?;
    let url = server.url();
    let pid = server.id().ok_or("the server has no process")?.to_string();
    let mut table = Table { rows: Vec::new(), server: pid };
    for round in 0..rounds {
        for size in [256, 4096] {
            let total = if size == 256 { most } else { most / 4 };
            let ours: Bus = transport::open(format!("{url}?namespace=bench-{round}-{size}").parse()?).await?;
            let (piped, tasks) = (format!("raw-{round}-{size}"), format!("tasks-{round}-{size}"));
            let name = format!("publish, window 256, {size} B");
            table.run(&name, 0, total, raw_publish(&url, &piped, total, size)).await?;
            table.run(&name, 1, total, publish_window(&ours, total, size, 256)).await?;
            let name = format!("consume + ack, 1 worker, {size} B");
            table.run(&name, 0, total, raw_consume(&url, &piped, total)).await?;
            table.run(&name, 1, total, consume(&ours, total, 1, "one")).await?;
            let name = format!("consume + ack, 64 workers, {size} B");
            redis::cmd("XGROUP")
                .arg("DESTROY")
                .arg(&piped)
                .arg("raw")
                .exec_async(&mut connection(&url).await?)
                .await?;
            table.run(&name, 0, total, raw_consume(&url, &piped, total)).await?;
            table.run(&name, 1, total, consume(&ours, total / 64 * 64, 64, "many")).await?;
            let name = format!("publish, 64 tasks, {size} B");
            table.run(&name, 0, total, raw_publish_tasks(&url, &tasks, total, size, 64)).await?;
            table.run(&name, 1, total, publish_tasks(&ours, total, size, 64)).await?;
            let few = total / 20;
            let name = format!("publish, one at a time, {size} B");
            table.run(&name, 0, few, raw_publish_tasks(&url, &tasks, few, size, 1)).await?;
            table.run(&name, 1, few, publish_tasks(&ours, few, size, 1)).await?;
            ours.close().await?;
            redis::cmd("FLUSHALL").exec_async(&mut connection(&url).await?).await?;
        }
    }
    table.print();
    let bus: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    let other: Bus = transport::open(format!("{url}?namespace=latency").parse()?).await?;
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        raw.extend(raw_latency(&url, &format!("lat-{round}"), 200).await?);
        ours.extend(latency(&bus, 200).await?);
    }
    let ((raw50, raw99), (ours50, ours99)) = (quantiles(raw), quantiles(ours));
    println!(
        "publish to handler, idle: raw p50 {raw50:.0} us p99 {raw99:.0} us, ours p50 {ours50:.0} us p99 {ours99:.0} us"
    );
    let (times, rate) = requests(&bus, &other, 2000).await?;
    let (p50, p99) = quantiles(times);
    println!("request and reply: one at a time p50 {p50:.0} us p99 {p99:.0} us; 64 at once {rate:.0}/s");
    Ok(())
}
