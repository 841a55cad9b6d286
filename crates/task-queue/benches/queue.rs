//! Measures the enqueue rate, the drain rate and the idle latency of the SQLite store, durable
//! (`synchronous=FULL`), with stored results.
//!
//! `cargo bench -p task-queue` prints tasks per second and start latencies. Rates depend on the machine's load:
//! compare rows of one run with each other, not with another day's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use task_queue::{
    State, TaskClient, Worker,
    store::{
        NewTask, TaskStore,
        sqlite::{SqliteOptions, SqliteStore},
    },
    task,
};
use tokio::sync::{Notify, oneshot};

/// The environment variable with the store's path, set when this program runs as a worker process for the
/// benchmark.
const WORKER: &str = "TASK_BENCH_WORKER";

#[derive(Clone, Default)]
struct Counter(Arc<(AtomicUsize, Notify)>);

#[task]
async fn nothing(State(done): State<Counter>, number: u64) -> Result<u64, String> {
    done.0.0.fetch_add(1, Ordering::Relaxed);
    done.0.1.notify_one();
    Ok(number)
}

/// Returns the time from its enqueue to its start, in microseconds.
#[task]
async fn lateness(enqueued: i64) -> Result<i64, String> {
    Ok(Timestamp::now().as_microsecond() - enqueued)
}

async fn fresh() -> (Arc<dyn TaskStore>, TaskClient, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(SqliteOptions::new(folder.path().join("tasks.db"))).await.expect("a store");
    let store: Arc<dyn TaskStore> = Arc::new(store);
    (store.clone(), TaskClient::new(store), folder)
}

fn tasks(count: u64) -> Vec<NewTask> {
    (0..count).map(|number| nothing.delay(number).into_task().expect("a task")).collect()
}

fn report(what: &str, count: u64, took: Duration) {
    println!("{what:<40} {:>9.0}/s", count as f64 / took.as_secs_f64());
}

async fn enqueue(parallel: usize, count: u64) {
    let (_, client, _folder) = fresh().await;
    let client = &client;
    let begin = Instant::now();
    stream::iter(0..count)
        .map(|number| async move { drop(nothing.delay(number).on(client).await.expect("enqueued")) })
        .buffer_unordered(parallel)
        .collect::<()>()
        .await;
    report(&format!("enqueue, {parallel} at a time"), count, begin.elapsed());
}

async fn enqueue_bulk(bulk: usize, count: u64) {
    let (_, client, _folder) = fresh().await;
    let tasks = tasks(count);
    let begin = Instant::now();
    for some in tasks.chunks(bulk) {
        client.send(some.to_vec()).await.expect("enqueued");
    }
    report(&format!("enqueue, bulks of {bulk}"), count, begin.elapsed());
}

async fn drain(concurrency: usize, count: u64) {
    let (store, client, _folder) = fresh().await;
    for some in tasks(count).chunks(1000) {
        client.send(some.to_vec()).await.expect("enqueued");
    }
    let done = Counter::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let begin = Instant::now();
    let worker = Worker::new(store).register(nothing).with_state(done.clone()).concurrency(concurrency);
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    while done.0.0.load(Ordering::Relaxed) < count as usize {
        done.0.1.notified().await;
    }
    drop(stop);
    // The measurement includes the storage of the last result.
    worker.await.expect("the worker ends").expect("the worker ends well");
    report(&format!("drain, concurrency {concurrency}"), count, begin.elapsed());
}

/// Measures latency with a worker in this process, or in another one.
async fn latency(count: usize, across: bool) {
    let (store, client, folder) = fresh().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let mut child = across.then(|| {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.env(WORKER, folder.path().join("tasks.db")).spawn().expect("a worker process")
    });
    let worker = tokio::spawn(async move {
        match across {
            true => drop(stopped.await),
            false => {
                let worker = Worker::new(store).register(lateness);
                worker.run_until(async { drop(stopped.await) }).await.expect("the worker ends well");
            }
        }
    });
    lateness
        .delay(0)
        .on(&client)
        .await
        .expect("enqueued")
        .get(Duration::from_secs(10))
        .await
        .expect("warmed up");
    let (mut starts, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let begin = Instant::now();
        let call = lateness.delay(Timestamp::now().as_microsecond()).on(&client).await.expect("enqueued");
        starts.push(call.get(Duration::from_secs(10)).await.expect("a result") as f64 / 1000.0);
        answers.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    drop(stop);
    worker.await.expect("the worker ends");
    if let Some(child) = &mut child {
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    let place = if across { "across two processes" } else { "in one process" };
    for (what, mut times) in [("enqueue to start", starts), ("call to result", answers)] {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let what = format!("{what}, {place}");
        println!("{what:<40} p50 {:>6.2} ms   p99 {:>6.2} ms", at(0.5), at(0.99));
    }
}

#[tokio::main]
async fn main() {
    if let Ok(path) = std::env::var(WORKER) {
        let store = SqliteStore::open(SqliteOptions::new(path)).await.expect("a store");
        let worker = Worker::new(Arc::new(store)).register(lateness);
        return worker.run_until(std::future::pending()).await.expect("the worker works");
    }
    // `cargo test --benches` only checks that the benchmark runs, so it runs a hundredth of the work.
    let scale = if std::env::args().any(|argument| argument == "--bench") { 1 } else { 100 };
    enqueue(1, 2_000 / scale).await;
    enqueue(64, 20_000 / scale).await;
    enqueue(256, 40_000 / scale).await;
    enqueue_bulk(500, 100_000 / scale).await;
    drain(1, 3_000 / scale).await;
    drain(16, 20_000 / scale).await;
    drain(100, 50_000 / scale).await;
    latency(500 / scale as usize, false).await;
    latency(500 / scale as usize, true).await;
}
