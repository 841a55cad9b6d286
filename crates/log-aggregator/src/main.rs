//! The aggregator alone, as a drop-in for Logthon: `log-aggregator [DIRECTORY]`, the rest from Logthon's
//! variables. With `EVENT_BUS_URL` it also takes what services ship over that bus. `backbone up` runs the same
//! beside the bus and the tasks.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use event_client::Bus;
use log_aggregator::{Aggregator, Config};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-aggregator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| "logs".into());
    let config = Config::from_vars(dir, std::env::vars()).map_err(|e| e.chain())?;
    let address = format!("{}:{}", config.host, config.port);
    let listener =
        TcpListener::bind(&address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
    let bound = listener.local_addr().map_err(|e| e.to_string())?;
    // An answer is one small segment: it must not wait for more.
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    let aggregator = Aggregator::open(config).await.map_err(|e| e.chain())?;
    // Unlike other services this one runs well without a bus: no URL means none, not the default one.
    let bus = match std::env::var_os("EVENT_BUS_URL") {
        Some(_) => Some(Bus::from_env("log-aggregator").await.map_err(|e| chain(&e))?),
        None => None,
    };
    if let Some(bus) = &bus {
        aggregator.consume(bus).await.map_err(|e| e.chain())?;
    }
    println!("listening on http://{bound}");
    std::io::stdout().flush().map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    tokio::select! {
        served = axum::serve(listener, aggregator.router()).into_future() => served.map_err(|e| e.to_string())?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    aggregator.drain(Duration::from_secs(10)).await.map_err(|e| e.chain())?;
    match bus {
        Some(bus) => bus.close().await.map_err(|e| chain(&e)),
        None => Ok(()),
    }
}

/// The error and all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
