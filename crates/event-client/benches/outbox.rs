//! Benchmarks the outbox's relay against a plain sqlx loop that does the same work:
//! `cargo bench -p event-client --bench outbox`.
//!
//! The loop selects a batch, publishes it in a window and marks it with one statement: it has no claim, no
//! order per key while transactions are open, no envelope and no wake-up signal. Rounds of both alternate, so
//! that other load on the machine slows both. `BENCH_ROUNDS`, `BENCH_MESSAGES` and `BENCH_BATCH` change the
//! length and the batch.

use std::path::Path;
use std::time::{Duration, Instant};

use event_client::message::Message;
use event_client::outbox::{self, Dialect};
use event_client::subject::Subject;
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use sqlx::{Pool, query_as, query_scalar};
use tokio::sync::oneshot;

type BenchResult<T = f64> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
/// The columns that the loop reads of a row.
type Staged = (i64, String, Option<String>, String);

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
struct OrderPlaced {
    order_id: u64,
    note: String,
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Stages transactions of a thousand events, over five thousand keys.
async fn stage<D: Dialect>(pool: &Pool<D>, total: usize) -> BenchResult {
    let start = Instant::now();
    for batch in 0..total / 1000 {
        let note = "x".repeat(180);
        let event = |n| OrderPlaced { order_id: ((batch * 1000 + n) % 5000) as u64, note: note.clone() };
        let mut tx = pool.begin().await?;
        outbox::stage_all(&mut tx, (0..1000).map(event)).await?;
        outbox::commit(tx).await?;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Runs the relay from a full outbox until it is empty.
async fn relay<D: Dialect>(pool: &Pool<D>, bus: &Bus, total: usize, batch: u32) -> BenchResult {
    let (stop, stopped) = oneshot::channel::<()>();
    let start = Instant::now();
    let relay = outbox::Relay::new(pool.clone(), bus.clone()).batch(batch).dedup(false);
    let relay = tokio::spawn(relay.run_until(async { stopped.await.unwrap_or_default() }));
    // Reading the oldest row costs the database very little.
    loop {
        let look = D::waiting(&mut *pool.acquire().await?, &mut D::Cursor::default(), 1).await?;
        // `open`: the relay is marking events, or another transaction stages some.
        if look.rows.is_empty() && !look.open {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = total as f64 / start.elapsed().as_secs_f64();
    drop(stop);
    relay.await??;
    Ok(rate)
}

/// Publishes the rows that the loop has read.
async fn publish(bus: &Bus, rows: &[Staged]) -> BenchResult<Vec<i64>> {
    let mut confirms = Vec::with_capacity(rows.len());
    for (_, id, key, payload) in rows {
        let mut message =
            Message::new(Subject::new("orders.placed.v1")?, "application/json", payload.clone());
        message.id = id.as_str().into();
        message.key = key.as_deref().map(Into::into);
        confirms.push(bus.transport().publish(message));
    }
    for confirm in confirms {
        confirm.await?;
    }
    Ok(rows.iter().map(|row| row.0).collect())
}

async fn raw_postgres(pool: &PgPool, bus: &Bus, total: usize, batch: u32) -> BenchResult {
    let start = Instant::now();
    loop {
        let select = "SELECT position, id, aggregateid, payload FROM outbox
            WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT $1";
        let rows: Vec<Staged> = query_as(select).bind(i64::from(batch)).fetch_all(pool).await?;
        if rows.is_empty() {
            return Ok(total as f64 / start.elapsed().as_secs_f64());
        }
        let update = sqlx::query("UPDATE outbox SET published = 1 WHERE position = ANY($1)");
        update.bind(publish(bus, &rows).await?).execute(pool).await?;
    }
}

async fn raw_sqlite(pool: &SqlitePool, bus: &Bus, total: usize, batch: u32) -> BenchResult {
    let start = Instant::now();
    loop {
        let select = "SELECT position, id, aggregateid, payload FROM outbox
            WHERE published IS NULL AND error IS NULL ORDER BY position LIMIT ?";
        let rows: Vec<Staged> = query_as(select).bind(batch).fetch_all(pool).await?;
        if rows.is_empty() {
            return Ok(total as f64 / start.elapsed().as_secs_f64());
        }
        let update = "UPDATE outbox SET published = 1 WHERE position IN (SELECT value FROM json_each(?))";
        let positions = serde_json::to_string(&publish(bus, &rows).await?)?;
        sqlx::query(update).bind(positions).execute(pool).await?;
    }
}

async fn sqlite(folder: &Path) -> BenchResult<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(folder.join("service.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal)).await?;
    outbox::create_tables(&pool).await?;
    Ok(pool)
}

async fn postgres(server: &test_servers::Postgres, name: String) -> BenchResult<PgPool> {
    let url = server.database(&name).await?;
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await?;
    outbox::create_tables(&pool).await?;
    Ok(pool)
}

/// Measures from commit to the bus's confirmation, one event at a time, in milliseconds; the relay sleeps in
/// between.
async fn latency(pool: &PgPool, bus: &Bus, rounds: usize) -> BenchResult<Vec<f64>> {
    let (stop, stopped) = oneshot::channel::<()>();
    let relay = outbox::Relay::new(pool.clone(), bus.clone());
    let relay = tokio::spawn(relay.run_until(async { stopped.await.unwrap_or_default() }));
    let everything = event_client::subject::Pattern::new("orders.>")?;
    let published = bus.subscribe(event_client::transport::Subscribe::broadcast([everything])).await?;
    let armed = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'";
    let mut times = Vec::new();
    for _ in 0..rounds {
        while query_scalar::<_, i64>(armed).fetch_one(pool).await? == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut tx = pool.begin().await?;
        outbox::stage(&mut tx, OrderPlaced { order_id: 1, note: String::new() }).await?;
        tx.commit().await?;
        let start = Instant::now();
        published.next().await.ok_or("the subscription ended")?.ack().await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    drop(stop);
    relay.await??;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Prints the best, median and worst of the rounds, and the ratio of the medians.
fn report(name: &str, mut raw: Vec<f64>, mut ours: Vec<f64>) {
    let line = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let median = values[values.len() / 2];
        (median, format!("{median:>9.0} ({:.0} to {:.0})", values[0], values[values.len() - 1]))
    };
    let ((raw, raw_text), (ours, ours_text)) = (line(&mut raw), line(&mut ours));
    println!("{name:<34} raw {raw_text:<32} relay {ours_text:<32} ratio {:.2}", ours / raw);
}

#[tokio::main]
async fn main() -> BenchResult<()> {
    let (rounds, total) = (setting("BENCH_ROUNDS", 5), setting("BENCH_MESSAGES", 50_000));
    let batch = u32::try_from(setting("BENCH_BATCH", 1000))?;
    let server = test_servers::Postgres::options().start().await?;
    let mut results: [[Vec<f64>; 2]; 4] = Default::default();
    let mut staged: [Vec<f64>; 2] = Default::default();
    for round in 0..rounds {
        let folder = tempfile::tempdir()?;
        let memory = Bus::connect("memory:").await?;
        let file = Bus::connect(&format!("sqlite:{}", folder.path().join("bus.db").display())).await?;
        let pg = postgres(&server, format!("round_{round}")).await?;
        let lite = sqlite(folder.path()).await?;
        for (row, bus) in [&memory, &file].into_iter().enumerate() {
            staged[0].push(stage(&pg, total).await?);
            results[row][0].push(raw_postgres(&pg, bus, total, batch).await?);
            stage(&pg, total).await?;
            results[row][1].push(relay(&pg, bus, total, batch).await?);
            staged[1].push(stage(&lite, total).await?);
            results[row + 2][0].push(raw_sqlite(&lite, bus, total, batch).await?);
            stage(&lite, total).await?;
            results[row + 2][1].push(relay(&lite, bus, total, batch).await?);
        }
        pg.close().await;
        lite.close().await;
        file.close().await?;
    }
    for (name, mut rates) in ["postgres", "sqlite"].into_iter().zip(staged) {
        rates.sort_by(f64::total_cmp);
        println!("staged in transactions of 1000, {name}: {:.0}/s", rates[rates.len() / 2]);
    }
    let names = ["postgres to memory:", "postgres to sqlite:", "sqlite to memory:", "sqlite to sqlite:"];
    for (name, [raw, ours]) in names.into_iter().zip(results) {
        report(name, raw, ours);
    }
    let pool = postgres(&server, "latency".into()).await?;
    let times = latency(&pool, &Bus::connect("memory:").await?, 300).await?;
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "commit to published, idle relay, postgres to memory: p50 {:.2} ms, p99 {:.2} ms",
        at(0.5),
        at(0.99)
    );
    Ok(())
}
