//! A complete service: HTTP, a database with an outbox, handlers, tasks, logs, health and shutdown.
//!
//! ```console
//! $ cargo run --example order_service
//! $ curl -H 'content-type: application/json' -d '{"customer": "anna", "cents": 1200}' localhost:8080/orders
//! $ curl localhost:8080/orders/1
//! $ curl localhost:8080/ready
//! $ cargo run --example order_service -- --once    # places one order, prints the results and stops
//! ```
//!
//! An order takes these steps:
//! 1. `POST /orders` stores a row and the event `orders.placed` in one transaction (`api.rs`).
//! 2. The outbox relay publishes the event on the bus.
//! 3. The handler `confirm` changes the row and enqueues the task `send_receipt` (`orders.rs`).
//! 4. The worker runs the task.
//! 5. `GET /orders/ID` sends a request over the bus; the handler `get_order` replies.
//!
//! All steps have the `x-request-id` and the trace of the HTTP request.

mod api;
mod once;
mod orders;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use event_client::log::shipping;
use event_client::service::Running;
use event_client::{Bus, bus, outbox};
use serde::Deserialize;
use service_kit::config::{Loader, Url};
use service_kit::health::Health;
use service_kit::shutdown::{Parts, Report, Shutdown};
use service_kit::{http, shutdown, telemetry};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use task_queue::{TaskClient, Worker, store};

use crate::api::App;

/// The keys of `settings.toml`.
#[derive(Debug, Deserialize)]
struct Settings {
    http: http::Settings,
    log: telemetry::Settings,
    data: DataSettings,
    bus: UrlSettings,
    tasks: UrlSettings,
    shutdown: shutdown::Settings,
}

#[derive(Debug, Deserialize)]
struct DataSettings {
    folder: PathBuf,
}

/// The type `Url` hides the password when it is printed.
#[derive(Debug, Deserialize)]
struct UrlSettings {
    url: Url,
}

impl UrlSettings {
    /// The URL, or an SQLite file in the data folder.
    fn or_file(&self, folder: &Path, name: &str) -> String {
        if self.url.is_empty() {
            format!("sqlite:{}", folder.join(name).display())
        } else {
            self.url.expose().to_owned()
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let once = std::env::args().any(|argument| argument == "--once");
    // `--once` uses a temporary folder and a free port.
    let temporary = once.then(tempfile::tempdir).transpose()?;
    let settings: Settings = Loader::new("orders")
        .defaults(include_str!("settings.toml"))
        .flag("--once", "http.port", once.then_some(0))
        .flag("--once", "data.folder", temporary.as_ref().map(|folder| folder.path().display()))
        .load()?
        .into_inner();
    let report = run(settings, once).await?;
    println!("{report}");
    Ok(report.exit_code())
}

/// Starts the parts in the order in which they need each other, and stops them in the reverse order.
async fn run(settings: Settings, once: bool) -> anyhow::Result<Report> {
    // 1. Logs and signals. Log records wait in a bounded queue until the bus is connected.
    let (layer, shipper) = shipping("orders");
    let metrics = telemetry::init(&settings.log, vec![Box::new(layer)])?;
    let shutdown = Shutdown::on_signals()?;

    // 2. The stores: database, bus, tasks. Then the port, so that a port in use is reported before any work starts.
    let folder = &settings.data.folder;
    std::fs::create_dir_all(folder)?;
    let pool = open_database(&folder.join("orders.db")).await?;
    let source = bus::Settings { source: "/orders".into(), ..bus::Settings::default() };
    let bus = Bus::from_env_with(Some(&settings.bus.or_file(folder, "bus.db")), source).await?;
    let tasks = store::open(&settings.tasks.or_file(folder, "tasks.db")).await?;
    TaskClient::new(tasks.clone()).install(); // `send_receipt.delay(..)` enqueues through this client
    let listener = http::bind(&settings.http).await?;
    let address = listener.local_addr()?;

    // 3. The service, before the relay and the HTTP server can publish anything.
    let mut service = orders::start(&bus, &pool).await?;
    let app = App { pool: pool.clone(), bus: bus.clone() };
    let health = Health::new("orders", env!("CARGO_PKG_VERSION")).metrics(metrics).watch(&shutdown);
    add_checks(&health, &app, &service);

    // 4. The parts. The part that is added last stops first: the HTTP server takes no new requests, then the handlers
    //    and the tasks finish. Events that the relay has not published stay in the outbox until the next start. The
    //    bus closes last, after the last log record.
    let mut parts = Parts::new(shutdown, settings.shutdown);
    let shipping = shipper.start(bus.clone());
    let closing = bus.clone();
    parts.add("bus", |stop| async move {
        stop.requested().await;
        shipping.close(Duration::from_secs(5)).await;
        closing.close().await
    });
    let relay = outbox::Relay::new(pool.clone(), bus);
    parts.add("relay", |stop| relay.run_until(async move { stop.requested().await }));
    let worker = Worker::new(tasks).register(orders::send_receipt).with_state(pool);
    parts.add("worker", |stop| worker.run_until(async move { stop.requested().await }));
    parts.add("service", |stop| async move {
        tokio::select! {
            () = stop.requested() => service.drain().await, // finishes the handlers that run
            error = service.failed() => Err(error),         // a handler receives no more events
        }
    });
    let router = api::router(app, &health);
    parts.add("http", |stop| http::serve(listener, router, stop));
    println!("listening on http://{address}");

    // 5. A part that ends stops the whole process. With `--once` that part is the caller below.
    if once {
        parts.add("caller", |_| async move {
            let placed = once::place_one_order(address);
            tokio::time::timeout(Duration::from_secs(30), placed).await?
        });
    }
    Ok(parts.run().await)
}

/// Opens the database and creates the tables of the service, the outbox and the inbox.
async fn open_database(file: &Path) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let pool = SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal)).await?;
    let table = "CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY, customer TEXT NOT NULL, cents INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'placed',
        receipt_sent BOOLEAN NOT NULL DEFAULT FALSE, correlation TEXT)";
    sqlx::query(table).execute(&pool).await?;
    outbox::create_tables(&pool).await?;
    Ok(pool)
}

/// `/ready` answers 200 while all checks succeed and the process is not stopping.
fn add_checks(health: &Health, app: &App, service: &Running) {
    let pool = app.pool.clone();
    health.check("database", move || {
        let pool = pool.clone();
        async move { sqlx::query("SELECT 1").execute(&pool).await.map(drop) }
    });
    let bus = app.bus.clone();
    health.check("bus", move || {
        let bus = bus.clone();
        async move { bus.admin().ping().await.map(drop) }
    });
    let service = service.handle();
    health.check("handlers", move || {
        let ready = service.is_ready();
        async move { if ready { Ok(()) } else { Err("a handler receives no events") } }
    });
}
