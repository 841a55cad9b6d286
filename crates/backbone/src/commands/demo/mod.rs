//! `backbone demo`: runs two reference systems with traffic and prints a report in which every count must match.

mod counts;
mod observe;
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use event_client::Bus;
use event_client::service::Running;
use reference_systems::securebox::{self, Vault};
use reference_systems::{Expected, edge_terrarium};
use service_kit::config::Url;
use service_kit::shutdown::Stop;
use service_kit::{http, telemetry};
use tokio::sync::oneshot;

use crate::args::{Demo, Global};
use crate::config::{self, Settings};
use crate::stack::{Options, Stack};
use observe::Observed;
use terminal::Output;

/// Factor by which the schedules run more often than in production: every 0.5 s, 3 s and 6 s.
const SPEED: u32 = 600;
/// Longest time to wait after the traffic until all counts match.
const SETTLE: Duration = Duration::from_secs(40);

pub(crate) async fn run(global: &Global, args: Demo, output: Output) -> anyhow::Result<ExitCode> {
    let temporary = if args.once && args.data_dir.is_none() { Some(tempfile::tempdir()?) } else { None };
    let data_dir = match (&temporary, args.data_dir) {
        (Some(folder), _) => folder.path().to_owned(),
        (None, Some(dir)) => dir,
        (None, None) => "backbone-demo".into(),
    };
    let flags = config::loader().flag("--url", "bus.url", global.url.as_ref().map(Url::expose));
    let settings = flags.load::<Settings>()?.into_inner();
    let options = Options {
        data_dir: data_dir.clone(),
        http: http::Settings {
            host: "127.0.0.1".into(),
            port: args.port.unwrap_or(if args.once { 0 } else { 5000 }),
            ..http::Settings::default()
        },
        url: settings
            .bus
            .url
            .map(|url| if args.once { Url::new(apart(url.expose().to_owned())) } else { url }),
        // The demo contains failures on purpose; the report and the viewer show them.
        log: quiet(settings.log),
        logs: settings.logs,
        shutdown: service_kit::shutdown::Settings { drain: Duration::from_secs(15), ..Default::default() },
        leftovers: Duration::from_secs(5),
    };
    let vault = Vault::open(data_dir.join("securebox"))?;
    let working = vault.clone();
    let schedules = securebox::schedules(SPEED)?;
    let mut stack =
        Stack::start(options, move |worker, bus| securebox::worker(worker, &working, bus), schedules).await?;
    let viewer = format!("http://{}", stack.address);

    let terrarium = edge_terrarium::Terrarium::open(data_dir.join("edge-terrarium"))?;
    let mut running = Vec::new();
    let services = securebox::services(&stack.bus, &vault).into_iter();
    for service in services.chain(edge_terrarium::services(&stack.bus, &terrarium)) {
        running.push(service.start().await?);
    }
    let observed = Observed::new(&stack, &running).await?;
    stack.parts.add("reference systems", |stop| async move {
        stop.requested().await;
        drain(running).await
    });
    if !output.is_json() {
        output.line(&format!("log viewer  {}", output.bold(&format!("{viewer}/"))))?;
    }
    let show = Show { bus: stack.bus.clone(), vault, viewer, observed, once: args.once, output };
    let (answer, report) = oneshot::channel();
    // The last part to start is the first to stop: its report is made while all other parts still run.
    stack.parts.add("traffic", |stop| async move {
        drop(answer.send(show.run(stop).await));
        Ok::<(), event_client::Error>(())
    });
    let stopped = stack.run().await;
    let adds_up = report.await.context("the demonstration was interrupted")??;
    if !stopped.is_clean() {
        terminal::note(&format!("error: {stopped}"));
    }
    Ok(if adds_up && stopped.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds a random namespace to the URL of a broker, so that events of other users and of earlier runs do not change
/// the counts of this run.
fn apart(url: String) -> String {
    let shared = !url.starts_with("sqlite:") && !url.starts_with("memory:");
    let named = url.contains("namespace=") || std::env::var_os("EVENT_BUS_NAMESPACE").is_some();
    if !shared || named {
        return url;
    }
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}namespace=demo-{:08x}", fastrand::u32(..))
}

/// The part that sends the traffic and prints the report.
struct Show {
    bus: Bus,
    vault: Vault,
    viewer: String,
    observed: Observed,
    once: bool,
    output: Output,
}

impl Show {
    /// Sends one round of traffic, or rounds until the stop request, and prints the report; returns whether all
    /// counts match.
    async fn run(self, stop: Stop) -> anyhow::Result<bool> {
        let began = Instant::now();
        let mut expected = Expected::default();
        while !stop.is_requested() {
            expected = expected.and(traffic(&self.bus, &self.vault, &self.viewer).await?);
            if self.once {
                break;
            }
            summary(self.output, &self.observed, began.elapsed()).await?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
                () = stop.requested() => {}
            }
        }
        let bound = if self.once { SETTLE } else { Duration::from_secs(5) };
        let report = self.observed.settle(&expected, bound).await?;
        report.print(self.output, began.elapsed())?;
        Ok(report.adds_up())
    }
}

/// Runs the traffic of both systems concurrently.
async fn traffic(bus: &Bus, vault: &Vault, viewer: &str) -> anyhow::Result<Expected> {
    let securebox = securebox::traffic(bus, vault, securebox::Load::default());
    let terrarium = edge_terrarium::traffic(bus, viewer, edge_terrarium::Load::default());
    let (securebox, terrarium) = tokio::join!(securebox, terrarium);
    Ok(securebox.map_err(|error| anyhow!(error))?.and(terrarium.map_err(|error| anyhow!(error))?))
}

async fn drain(running: Vec<Running>) -> event_client::Result<()> {
    for service in running {
        service.drain().await?;
    }
    Ok(())
}

async fn summary(output: Output, observed: &Observed, up: Duration) -> anyhow::Result<()> {
    let now = observed.now().await?;
    if output.is_json() {
        return Ok(output.json(&now)?);
    }
    Ok(output.line(&format!(
        "{:>5.0} s  {} events handled, {} retried, {} dead, {} tasks done, {} firings, {} log records",
        up.as_secs_f64(),
        now.handled.values().sum::<u64>(),
        now.retried.values().sum::<u64>(),
        now.dead.values().sum::<u64>(),
        now.tasks.values().sum::<u64>(),
        now.fired.values().sum::<u64>(),
        now.logs.values().sum::<u64>(),
    ))?)
}

/// Turns log lines off unless the environment sets a filter.
fn quiet(mut log: telemetry::Settings) -> telemetry::Settings {
    if log.filter.is_none() {
        log.format = telemetry::Format::Off;
    }
    log
}
