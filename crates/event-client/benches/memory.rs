//! Benchmarks speed and allocations of the memory transport: `cargo bench -p event-client --bench memory`.
#![allow(unsafe_code, reason = "an allocator that counts can only be written as an unsafe impl")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{MemoryConfig, MemoryTransport, Subscribe, Transport};

struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MESSAGES: usize = 200_000;
const ROUNDS: usize = 7;

/// A round's result: messages per second and allocations per message.
type Round = (f64, f64);

fn message(subject: &Subject, payload: &bytes::Bytes, key: usize) -> Message {
    let mut message = Message::new(subject.clone(), "application/cloudevents+json", payload.clone());
    message.key = Some(smol_str::format_smolstr!("key-{}", key % 1000));
    message
}

fn bus() -> MemoryTransport {
    let mut config = MemoryConfig::default();
    config.max_bytes = 1 << 30;
    MemoryTransport::private(config).expect("a valid configuration")
}

fn spec(max_in_flight: usize, keyed: bool) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new("bench").expect("valid"), [Pattern::new("orders.>").expect("valid")]);
    spec.max_in_flight = max_in_flight;
    spec.keyed = keyed;
    spec
}

/// Consumes a backlog with acks, in `consumers` tasks.
async fn drain(max_in_flight: usize, keyed: bool, consumers: usize) -> Round {
    let bus = bus();
    let subject = Subject::new("orders.placed.v1").expect("valid");
    let payload = bytes::Bytes::from(vec![7u8; 256]);
    let subscription = bus.subscribe(spec(max_in_flight, keyed)).await.expect("subscribes");
    // The first half grows every buffer to its final size; the second half is measured.
    let mut result = (0.0, 0.0);
    for _ in 0..2 {
        for n in 0..MESSAGES {
            bus.publish(message(&subject, &payload, n)).await.expect("published");
        }
        let allocated = ALLOCATIONS.load(Relaxed);
        let start = Instant::now();
        let left = Arc::new(std::sync::atomic::AtomicI64::new(MESSAGES as i64));
        let tasks: Vec<_> = (0..consumers)
            .map(|_| {
                let (subscription, left) = (subscription.clone(), left.clone());
                tokio::spawn(async move {
                    while left.fetch_sub(1, Relaxed) > 0 {
                        let Some(delivery) = subscription.next().await else { return };
                        delivery.ack().await.expect("acknowledged");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
        result = (rate, (ALLOCATIONS.load(Relaxed) - allocated) as f64 / MESSAGES as f64);
    }
    result
}

/// Publishes only, with `groups` groups that receive each message.
async fn publish(groups: usize) -> Round {
    let bus = bus();
    let subject = Subject::new("orders.placed.v1").expect("valid");
    let payload = bytes::Bytes::from(vec![7u8; 256]);
    for n in 0..groups {
        let mut spec = spec(1, false);
        spec.mode = event_client::transport::Mode::Group(Group::new(format!("bench-{n}")).expect("valid"));
        drop(bus.subscribe(spec).await.expect("subscribes"));
    }
    let allocated = ALLOCATIONS.load(Relaxed);
    let start = Instant::now();
    for n in 0..MESSAGES {
        bus.publish(message(&subject, &payload, n)).await.expect("published");
    }
    let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
    (rate, (ALLOCATIONS.load(Relaxed) - allocated) as f64 / MESSAGES as f64)
}

/// Runs a publisher and a consumer at the same time.
async fn through(max_in_flight: usize) -> Round {
    let bus = Arc::new(bus());
    let subscription = bus.subscribe(spec(max_in_flight, false)).await.expect("subscribes");
    let allocated = ALLOCATIONS.load(Relaxed);
    let start = Instant::now();
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move {
            let subject = Subject::new("orders.placed.v1").expect("valid");
            let payload = bytes::Bytes::from(vec![7u8; 256]);
            for n in 0..MESSAGES {
                bus.publish(message(&subject, &payload, n)).await.expect("published");
                tokio::task::coop::consume_budget().await;
            }
        }
    });
    let consumer = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            let delivery = subscription.next().await.expect("a delivery");
            delivery.ack().await.expect("acknowledged");
        }
    });
    publisher.await.expect("no panic");
    consumer.await.expect("no panic");
    let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
    (rate, (ALLOCATIONS.load(Relaxed) - allocated) as f64 / MESSAGES as f64)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let cases = [
        "publish, 1 group",
        "publish, 4 groups",
        "consume with ack, credit 1",
        "consume with ack, credit 256",
        "consume with ack, credit 256, keyed",
        "consume with ack, credit 256, 2 consumers",
        "publish and consume with ack, credit 256",
    ];
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for (case, rounds) in rounds.iter_mut().enumerate() {
            rounds.push(runtime.block_on(async move {
                let round = match case {
                    0 => tokio::spawn(publish(1)),
                    1 => tokio::spawn(publish(4)),
                    2 => tokio::spawn(drain(1, false, 1)),
                    3 => tokio::spawn(drain(256, false, 1)),
                    4 => tokio::spawn(drain(256, true, 1)),
                    5 => tokio::spawn(drain(256, false, 2)),
                    _ => tokio::spawn(through(256)),
                };
                round.await.expect("no panic")
            }));
        }
    }
    println!("{MESSAGES} messages of 256 B, {ROUNDS} interleaved rounds\n");
    println!("{:<44} {:>10} {:>10} {:>10} {:>12}", "", "median/s", "worst/s", "best/s", "allocations");
    for (case, rounds) in cases.iter().zip(&mut rounds) {
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, allocations) = rounds[ROUNDS / 2];
        println!(
            "{case:<44} {median:>10.0} {:>10.0} {:>10.0} {allocations:>12.3}",
            rounds[0].0,
            rounds[ROUNDS - 1].0
        );
    }
}
