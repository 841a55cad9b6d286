//! Benchmarks the sqlite transport against raw sqlx on the same disk:
//! `cargo bench -p event-client --bench sqlite`.
//!
//! Rounds of the raw loop and of the transport alternate, so that other load on the machine slows both.
//! `BENCH_DIR` names another folder for the files, `BENCH_ROUNDS` and `BENCH_MESSAGES` change the length.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{self, Subscribe, Transport};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};

type Bus = Arc<dyn Transport>;
type BenchResult = Result<f64, Box<dyn std::error::Error + Send + Sync>>;

const PAYLOAD: usize = 256;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

async fn bus(folder: &Path, name: &str) -> Result<Bus, event_client::Error> {
    transport::open(format!("sqlite:{}", folder.join(name).display()).parse()?).await
}

fn message() -> Message {
    Message::new(
        Subject::new("orders.placed.v1").expect("valid"),
        "application/cloudevents+json",
        vec![7u8; PAYLOAD],
    )
}

fn spec(name: &str, max_in_flight: usize) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("valid"), [Pattern::new("orders.>").expect("valid")]);
    spec.max_in_flight = max_in_flight;
    spec
}

async fn raw(folder: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new()
        .filename(folder.join("raw.db"))
        .create_if_missing(true)
        .pragma("journal_mode", "WAL")
        .pragma("synchronous", "FULL")
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, topic TEXT, ts INTEGER, id BLOB, payload BLOB);
         CREATE TABLE IF NOT EXISTS place (name TEXT PRIMARY KEY, seq INTEGER);",
    )
    .execute(&mut connection)
    .await?;
    Ok(connection)
}

/// The fastest way with sqlx: transactions of `size` rows, each statement with up to 100 of them.
async fn raw_publish(connection: &mut SqliteConnection, total: usize, size: usize) -> BenchResult {
    let rows = size.min(100);
    let sql: &'static str = Box::leak(
        format!("INSERT INTO log (topic, ts, id, payload) VALUES {}", vec!["(?,?,?,?)"; rows].join(","))
            .into_boxed_str(),
    );
    let start = Instant::now();
    for _ in 0..total / size {
        let mut transaction = connection.begin().await?;
        for _ in 0..size / rows {
            let mut query = sqlx::query(sql);
            for _ in 0..rows {
                query = query.bind("orders").bind(1i64).bind(vec![1u8; 16]).bind(vec![7u8; PAYLOAD]);
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Reads 500 rows at a time and stores the position.
async fn raw_consume(connection: &mut SqliteConnection) -> BenchResult {
    let start = Instant::now();
    let (mut place, mut total, mut bytes) = (0i64, 0usize, 0usize);
    loop {
        let rows =
            sqlx::query("SELECT seq, topic, ts, id, payload FROM log WHERE seq > ? ORDER BY seq LIMIT 500")
                .bind(place)
                .fetch_all(&mut *connection)
                .await?;
        let Some(last) = rows.last() else { break };
        place = last.try_get(0)?;
        total += rows.len();
        for row in &rows {
            bytes += row.try_get::<Vec<u8>, _>(4)?.len();
        }
        sqlx::query("REPLACE INTO place VALUES ('reader', ?)").bind(place).execute(&mut *connection).await?;
    }
    assert_eq!(bytes, total * PAYLOAD);
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Publishes from `tasks` tasks, each awaiting its confirmation.
async fn publish(bus: &Bus, total: usize, tasks: usize) -> BenchResult {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..tasks {
        let bus = bus.clone();
        running.spawn(async move {
            for _ in 0..total / tasks {
                bus.publish(message()).await?;
            }
            Ok::<_, event_client::Error>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Publishes from one task with a sliding window.
async fn publish_window(bus: &Bus, total: usize, window: usize) -> BenchResult {
    let start = Instant::now();
    let mut waiting = std::collections::VecDeque::with_capacity(window);
    for _ in 0..total {
        if waiting.len() == window {
            waiting
                .pop_front()
                .map(|confirm: event_client::confirm::Confirm<_>| confirm)
                .expect("full")
                .await?;
        }
        waiting.push_back(bus.publish(message()));
    }
    for confirm in waiting {
        confirm.await?;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Consumes a backlog, acknowledging each message; measures until every acknowledgement is stored.
async fn consume(bus: &Bus, total: usize, max_in_flight: usize, name: &str) -> BenchResult {
    let mut spec = spec(name, max_in_flight);
    spec.start = transport::Start::Earliest;
    let start = Instant::now();
    let subscription = bus.subscribe(spec).await?;
    let mut last = None;
    for _ in 0..total {
        let delivery = subscription.next().await.ok_or("the subscription ended")?;
        last = Some(delivery.ack());
    }
    if let Some(last) = last {
        last.await?;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Measures publish to handler, one message at a time, in milliseconds.
async fn latency(
    publisher: &Bus,
    consumer: &Bus,
    rounds: usize,
    name: &str,
) -> Result<Vec<f64>, event_client::Error> {
    let subscription = consumer.subscribe(spec(name, 10)).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let confirm = publisher.publish(message());
        let delivery = subscription.next().await;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        confirm.await?;
        if let Some(delivery) = delivery {
            delivery.ack().await?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The same with the consumer in a separate process, which replies by publishing: half of the round trip.
async fn latency_across(
    folder: &Path,
    rounds: usize,
) -> Result<Vec<f64>, Box<dyn std::error::Error + Send + Sync>> {
    let bus = bus(folder, "bus.db").await?;
    let mut answers = spec("answers", 10);
    answers.filters = vec![Pattern::new("answers.>")?];
    let subscription = bus.subscribe(answers).await?;
    let mut echo = tokio::process::Command::new(std::env::current_exe()?)
        .env("BENCH_ECHO", folder)
        .kill_on_drop(true)
        .spawn()?;
    // The child's first message shows that it is ready.
    let hello = subscription.next().await.ok_or("the subscription ended")?;
    hello.ack().await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let start = Instant::now();
        bus.publish(message()).await?;
        let delivery = subscription.next().await.ok_or("the subscription ended")?;
        times.push(start.elapsed().as_secs_f64() * 1e3 / 2.0);
        delivery.ack().await?;
    }
    echo.kill().await?;
    bus.close().await?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

async fn echo(folder: PathBuf) -> Result<(), event_client::Error> {
    let bus = bus(&folder, "bus.db").await?;
    let subscription = bus.subscribe(spec("echo", 10)).await?;
    let answer = || Message::new(Subject::new("answers.echo").expect("valid"), "text/plain", "");
    bus.publish(answer()).await?;
    while let Some(delivery) = subscription.next().await {
        let answered = bus.publish(answer());
        drop(delivery.ack());
        answered.await?;
    }
    Ok(())
}

/// Prints the best, median and worst of the rounds, and the ratio of the medians.
fn report(name: &str, mut raw: Vec<f64>, mut ours: Vec<f64>) {
    let line = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let median = values[values.len() / 2];
        (median, format!("{:>9.0} ({:.0} to {:.0})", median, values[0], values[values.len() - 1]))
    };
    let ((raw, raw_text), (ours, ours_text)) = (line(&mut raw), line(&mut ours));
    println!("{name:<34} raw {raw_text:<32} ours {ours_text:<32} ratio {:.2}", ours / raw);
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if let Some(folder) = std::env::var_os("BENCH_ECHO") {
        return Ok(echo(folder.into()).await?);
    }
    let rounds = setting("BENCH_ROUNDS", 5);
    let total = setting("BENCH_MESSAGES", 102_400);
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let mut results: [[Vec<f64>; 2]; 5] = Default::default();
    for _ in 0..rounds {
        let folder = tempfile::tempdir_in(&base)?;
        let mut connection = raw(folder.path()).await?;
        let ours = bus(folder.path(), "bus.db").await?;
        results[0][0].push(raw_publish(&mut connection, total, 200).await?);
        results[0][1].push(publish(&ours, total, 256).await?);
        results[1][0].push(raw_publish(&mut connection, total, 1000).await?);
        results[1][1].push(publish_window(&ours, total, 1024).await?);
        results[2][0].push(raw_publish(&mut connection, 1000, 1).await?);
        results[2][1].push(publish(&ours, 1000, 1).await?);
        results[3][0].push(raw_consume(&mut connection).await?);
        results[3][1].push(consume(&ours, 2 * total, 500, "credit-500").await?);
        results[4][0].push(results[3][0][results[3][0].len() - 1]);
        results[4][1].push(consume(&ours, 2 * total, 32, "credit-32").await?);
        ours.close().await?;
    }
    let names = [
        "publish, 256 tasks (raw: tx of 200)",
        "publish, window 1024 (raw: 1000)",
        "publish, one at a time",
        "consume with ack, credit 500",
        "consume with ack, credit 32",
    ];
    for (name, [raw, ours]) in names.into_iter().zip(results) {
        report(name, raw, ours);
    }
    let folder = tempfile::tempdir_in(&base)?;
    let one = bus(folder.path(), "bus.db").await?;
    let here = latency(&one, &one, 300, "here").await?;
    one.close().await?;
    let across = latency_across(folder.path(), 300).await?;
    for (name, times) in [("one process", here), ("two processes", across)] {
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        println!("publish to handler, {name}: p50 {:.2} ms, p99 {:.2} ms", at(0.5), at(0.99));
    }
    Ok(())
}
