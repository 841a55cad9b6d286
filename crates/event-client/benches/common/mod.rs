//! Shared code of the broker benchmarks: the transport's side of each row, and the table.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_client::bus::Settings;
use event_client::codec::Codec;
use event_client::confirm::Confirm;
use event_client::message::{Headers, Message};
use event_client::service::{Handler, Msg, Service, State};
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{Frame, Receipt, Serve, Subscribe, Transport};
use event_client::{Bus as FullBus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use test_servers::Generation;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(crate) type Bus = Arc<dyn Transport>;
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
/// Messages per second.
pub(crate) type BenchResult = Result<f64, Failure>;
/// Microseconds of single calls, and calls per second with many at the same time.
pub(crate) type Calls = (Vec<f64>, f64);

pub(crate) const SUBJECT: &str = "orders.placed.v1";
pub(crate) const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Reads a number from the environment.
pub(crate) fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Returns whether `BENCH_ONLY` names this part, or is unset or empty.
pub(crate) fn wanted(part: &str) -> bool {
    std::env::var("BENCH_ONLY").map_or(true, |only| only.is_empty() || only.split(',').any(|one| one == part))
}

/// Returns the generation of servers that `BENCH_NEW` selects.
pub(crate) fn generation() -> Generation {
    if setting("BENCH_NEW", 0) == 1 { Generation::New } else { Generation::Old }
}

pub(crate) fn message(size: usize) -> Message {
    Message::new(Subject::new(SUBJECT).expect("valid"), CONTENT_TYPE, vec![7u8; size])
}

pub(crate) fn spec(name: &str, max_in_flight: usize) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("valid"), [Pattern::new("orders.>").expect("valid")]);
    spec.max_in_flight = max_in_flight;
    spec
}

/// Creates a group without members, for brokers that keep messages only for existing groups.
pub(crate) async fn found(bus: &Bus, name: &str) -> Result<(), Failure> {
    drop(bus.subscribe(spec(name, 1)).await?);
    while bus.admin().groups().await?.iter().any(|group| group.group.as_str() == name && group.members > 0) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Publishes from one task with a sliding window of unconfirmed publishes.
pub(crate) async fn publish_window(bus: &Bus, total: usize, size: usize, window: usize) -> BenchResult {
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

/// Consumes a backlog with `workers` tasks, each acknowledging its deliveries.
pub(crate) async fn consume(bus: &Bus, total: usize, workers: usize, spec: Subscribe) -> BenchResult {
    let start = Instant::now();
    let subscription = bus.subscribe(spec).await?;
    at_once(workers, || {
        let subscription = subscription.clone();
        async move {
            let mut last = None;
            for _ in 0..total / workers {
                let Some(delivery) = subscription.next().await else { return Err("it ended".into()) };
                last = Some(delivery.ack());
            }
            if let Some(last) = last {
                last.await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Measures publish to handler, one message at a time, in microseconds.
pub(crate) async fn latency(bus: &Bus, rounds: usize) -> Result<Vec<f64>, Failure> {
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

/// Measures request and reply, as [`calls`] does.
pub(crate) async fn requests(bus: &Bus, other: &Bus, rounds: usize) -> Result<Calls, Failure> {
    let subjects = vec![Subject::new("shop.quote")?];
    let mut incoming = other.requests().serve(Serve::new("shop", subjects, 128)).await?;
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
    let bus = bus.clone();
    let measured = calls(rounds, move || call(bus.clone())).await;
    serving.abort();
    measured
}

/// Measures the microseconds of each call, one at a time, and the calls per second with 64 at the same time.
pub(crate) async fn calls<F>(
    rounds: usize,
    call: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Result<Calls, Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        call().await?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let each = rounds / 8;
    let start = Instant::now();
    at_once(64, || {
        let call = call.clone();
        async move {
            for _ in 0..each {
                call().await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok((times, (64 * each) as f64 / start.elapsed().as_secs_f64()))
}

/// Runs `tasks` tasks of the same kind until all are done.
pub(crate) async fn at_once<F>(tasks: usize, task: impl Fn() -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut running: JoinSet<_> = (0..tasks).map(|_| task()).collect();
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
pub(crate) struct OrderPlaced {
    order_id: u64,
    customer: String,
    cents: i64,
    note: String,
}

/// Counts down to zero, then notifies `done`.
pub(crate) struct Counter {
    left: AtomicU64,
    done: Notify,
}

async fn handle(State(counter): State<Arc<Counter>>, Msg(order): Msg<OrderPlaced>) {
    std::hint::black_box(order.cents);
    if counter.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        counter.done.notify_one();
    }
}

/// Opens a bus with typed events.
pub(crate) async fn full(url: &str, codec: Codec) -> Result<FullBus, Failure> {
    Ok(FullBus::connect_with(url, Settings { codec, ..Settings::default() }).await?)
}

/// Publishes typed events whose note has `size` bytes, with 256 unconfirmed.
pub(crate) async fn publish_typed(bus: &FullBus, total: usize, size: usize) -> BenchResult {
    let note = "x".repeat(size);
    let start = Instant::now();
    let mut window = bus.window(256);
    for order_id in 0..total as u64 {
        window
            .push(OrderPlaced { order_id, customer: "customer-7".into(), cents: 1200, note: note.clone() })
            .await?;
    }
    window.flush().await?;
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Handles all typed events of a group, 64 at a time with 384 in flight, as many as raw clients have.
pub(crate) async fn serve_typed(bus: &FullBus, total: usize, group: &str) -> BenchResult {
    let counter = Arc::new(Counter { left: AtomicU64::new(total as u64), done: Notify::new() });
    let start = Instant::now();
    let service =
        Service::new("bench").bus(bus.clone()).on(handle.concurrency(64).prefetch(320).group(group));
    let running = service.with_state(Arc::clone(&counter)).start().await?;
    counter.done.notified().await;
    let rate = total as f64 / start.elapsed().as_secs_f64();
    running.drain().await?;
    Ok(rate)
}

/// Returns the median and the 99th percentile.
pub(crate) fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Prints the latency row of an idle bus.
pub(crate) fn print_latency(raw: Vec<f64>, ours: Vec<f64>) {
    let ((raw50, raw99), (ours50, ours99)) = (quantiles(raw), quantiles(ours));
    println!(
        "publish to handler, idle: raw p50 {raw50:.0} us p99 {raw99:.0} us, ours p50 {ours50:.0} us p99 {ours99:.0} us"
    );
}

/// Returns the user and system time of a process so far, in seconds.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// One row: rates of the rounds, and CPU microseconds of client and server per message.
#[derive(Default)]
struct Row {
    name: String,
    rates: [Vec<f64>; 2],
    cpu: [Vec<(f64, f64)>; 2],
}

/// The rows, each with the raw client's and the transport's results.
pub(crate) struct Table {
    rows: Vec<Row>,
    server: String,
}

/// The side of a row: raw client or transport.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Raw,
    Ours,
}

impl Table {
    /// Creates a table; `server` is the process id of the broker.
    pub(crate) fn new(server: u32) -> Self {
        Self { rows: Vec::new(), server: server.to_string() }
    }

    /// Measures one round of a row.
    pub(crate) async fn run(
        &mut self,
        name: &str,
        side: Side,
        total: usize,
        work: impl Future<Output = BenchResult>,
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
        self.rows[at].rates[side as usize].push(rate);
        self.rows[at].cpu[side as usize].push((used.0 * 1e6 / total as f64, used.1 * 1e6 / total as f64));
        Ok(())
    }

    /// Prints the medians of all rows.
    pub(crate) fn print(&mut self) {
        println!("{:<40} {:>9} {:>9} {:>6}   us/message client/server", "", "raw", "ours", "ratio");
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
                "{:<40} {raw:>9.0} {ours:>9.0} {:>6.2}   raw {:.1}/{:.1} ours {:.1}/{:.1}",
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
