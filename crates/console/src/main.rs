//! Runs the log aggregator alone with its page, as a drop-in replacement for Logthon: `log-aggregator [DIRECTORY]`.
//! Logthon's environment variables set everything else. With `EVENT_BUS_URL` it also receives the log batches that
//! services publish on that bus. `backbone up` runs the same aggregator beside the bus and the task workers.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use event_client::Bus;
use log_aggregator::{Aggregator, Config};
use service_kit::shutdown::{Parts, Shutdown};
use service_kit::{http, telemetry};

/// Receive, store and show logs through Logthon's API and a web page. Logthon's environment variables set the rest,
/// for example LOGTHON_HOST, LOGTHON_PORT, LOGTHON_ALLOWED_HOSTS and LOGTHON_ALLOWED_ORIGINS.
#[derive(Debug, Parser)]
#[command(name = "log-aggregator", version)]
struct Arguments {
    /// Directory of the log store
    #[arg(default_value = "logs")]
    directory: PathBuf,
    /// Listen on addresses other than loopback although the server has no login; same as
    /// LOGTHON_ALLOW_UNAUTHENTICATED=true
    #[arg(long, visible_alias = "without-login")]
    allow_unauthenticated: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("log-aggregator: {}", service_kit::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
    let log = telemetry::Settings { format: telemetry::Format::Text, ..Default::default() };
    telemetry::init(&log, Vec::new())?;
    let mut config = Config::from_env(arguments.directory)?;
    config.http.allow_unauthenticated |= arguments.allow_unauthenticated;
    let shutdown = Shutdown::on_signals()?;
    let pages = console::Settings::of(&config);
    let listener = http::bind(&config.http).await?;
    let bound = listener.local_addr()?;
    let aggregator = Arc::new(Aggregator::open(config).await?);
    let mut parts = Parts::new(shutdown, service_kit::shutdown::Settings::default());
    // The aggregator also works without a bus. An unset or empty URL therefore means no bus, not the default bus.
    if std::env::var_os("EVENT_BUS_URL").is_some_and(|url| !url.is_empty()) {
        let bus = Bus::from_env("log-aggregator").await?;
        aggregator.consume(&bus).await?;
        parts.add("bus", |stop| async move {
            stop.requested().await;
            bus.close().await
        });
    }
    let draining = Arc::clone(&aggregator);
    parts.add("log aggregator", |stop| async move {
        stop.requested().await;
        draining.drain(Duration::from_secs(10)).await
    });
    let router = console::mount(aggregator.router(), &pages);
    parts.add("http", |stop| async move { aggregator.serve(listener, router, stop).await });
    println!("listening on http://{bound}");
    std::io::stdout().flush()?;
    let report = parts.run().await;
    if !report.is_clean() {
        eprintln!("log-aggregator: {report}");
    }
    Ok(report.exit_code())
}
