//! Benchmarks a full service with typed handlers against the bare transport:
//! `cargo bench -p event-client --bench service`.
//!
//! Rounds of the bare subscription and of the service alternate, so that other load on the machine slows
//! both. Both receive and acknowledge the same events; the service also reads the envelope, decodes the event
//! and runs the handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_client::bus::Settings;
use event_client::codec::Codec;
use event_client::layers::{MetricsLayer, Timeout, TraceLayer};
use event_client::service::{Handler, Msg, Req, Service, State};
use event_client::subject::{Group, Pattern};
use event_client::transport::{Start, Subscribe};
use event_client::{Bus, Event, Request};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

type BenchResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 7;

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
struct OrderPlaced {
    order_id: u64,
    customer: String,
    cents: i64,
    note: String,
}

#[derive(Request, Serialize, Deserialize)]
#[request(name = "bench.echo", reply = u64)]
struct Echo(u64);

/// Counts down to zero, then notifies `done`.
struct Counter {
    left: AtomicU64,
    done: Notify,
}

impl Counter {
    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.done.notify_one();
        }
    }
}

async fn handle(State(counter): State<Arc<Counter>>, Msg(order): Msg<OrderPlaced>) {
    std::hint::black_box(order.cents);
    counter.count();
}

async fn echo(Req(Echo(number)): Req<Echo>) -> Result<u64, event_client::Error> {
    Ok(number)
}

/// Opens a bus that holds `messages` events of about 256 bytes.
async fn filled(url: &str, codec: Codec, messages: u64) -> BenchResult<Bus> {
    let bus = Bus::connect_with(url, Settings { codec, ..Settings::default() }).await?;
    let note = "x".repeat(64);
    let mut window = bus.window(1024);
    for order_id in 0..messages {
        window
            .push(OrderPlaced { order_id, customer: "customer-7".into(), cents: 1200, note: note.clone() })
            .await?;
    }
    window.flush().await?;
    Ok(bus)
}

/// Consumes all messages through the bare subscription.
async fn bare(bus: &Bus, group: &str, messages: u64) -> BenchResult<f64> {
    let mut spec = Subscribe::group(Group::new(group)?, [Pattern::new("orders.>")?]);
    (spec.start, spec.max_in_flight) = (Start::Earliest, 256);
    let began = Instant::now();
    let subscription = bus.subscribe(spec).await?;
    let mut last = None;
    for _ in 0..messages {
        last = Some(subscription.next().await.ok_or("the subscription ended")?.ack());
    }
    if let Some(last) = last {
        last.await?;
    }
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}

/// Consumes all messages through a service; `layers` adds the usual three layers.
async fn served(bus: &Bus, group: &str, messages: u64, layers: bool) -> BenchResult<f64> {
    let counter = Arc::new(Counter { left: AtomicU64::new(messages), done: Notify::new() });
    let handler = handle.concurrency(256).start(Start::Earliest).group(group);
    let service = Service::new("bench").bus(bus.clone()).on(handler);
    let service = if layers {
        service.layer((TraceLayer, MetricsLayer, Timeout::new(Duration::from_secs(10))))
    } else {
        service
    };
    let began = Instant::now();
    let running = service.with_state(Arc::clone(&counter)).start().await?;
    counter.done.notified().await;
    let rate = messages as f64 / began.elapsed().as_secs_f64();
    running.drain().await?;
    Ok(rate)
}

async fn requests(bus: &Bus, calls: usize) -> BenchResult<(Duration, Duration)> {
    let running = Service::new("echo").bus(bus.clone()).reply(echo).start().await?;
    let mut times = Vec::with_capacity(calls);
    for number in 0..calls as u64 {
        let began = Instant::now();
        bus.request(Echo(number)).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    running.drain().await?;
    Ok((times[calls / 2], times[calls * 99 / 100]))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> BenchResult<()> {
    let folder = tempfile::tempdir()?;
    for (name, messages) in [("memory", 200_000_u64), ("sqlite", 60_000)] {
        for (spelling, codec) in [("json", Codec::Json), ("msgpack", Codec::MsgPack)] {
            let (mut raw, mut full, mut layered) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let url = match name {
                    "memory" => format!("memory:bench-{spelling}-{round}"),
                    _ => format!("sqlite:{}", folder.path().join(format!("{spelling}-{round}.db")).display()),
                };
                let bus = filled(&url, codec, messages).await?;
                raw.push(bare(&bus, "bare", messages).await?);
                full.push(served(&bus, "full", messages, false).await?);
                layered.push(served(&bus, "layered", messages, true).await?);
                bus.close().await?;
            }
            let (raw, full, layered) = (median(raw), median(full), median(layered));
            println!(
                "{name}, {spelling:<8} bare {raw:>9.0}/s   service {full:>9.0}/s (ratio {:.2}, {:+.2} us)   with 3 layers {layered:>9.0}/s (ratio {:.2}, {:+.2} us)",
                full / raw,
                1e6 / full - 1e6 / raw,
                layered / raw,
                1e6 / layered - 1e6 / raw
            );
        }
        let url = match name {
            "memory" => "memory:calls".to_owned(),
            _ => format!("sqlite:{}", folder.path().join("calls.db").display()),
        };
        let bus = Bus::connect(&url).await?;
        let (p50, p99) = requests(&bus, 5_000).await?;
        println!(
            "{name}, request and reply in one process: p50 {:.0} us, p99 {:.0} us",
            p50.as_secs_f64() * 1e6,
            p99.as_secs_f64() * 1e6
        );
        bus.close().await?;
    }
    Ok(())
}
