//! Everything in one process: bus, worker, scheduler, log aggregator and its page.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use event_client::Bus;
use event_client::bus::Settings;
use event_client::log::{ShippingStats, shipping};
use event_client::transport::GroupStatus;
use log_aggregator::Aggregator;
use service_kit::config::Url;
use service_kit::health::Health;
use service_kit::shutdown::{Parts, Report, Shutdown};
use service_kit::{http, telemetry};
use task_queue::store::TaskStore;
use task_queue::{Beat, Schedule, TaskClient, Worker};

use crate::builtin;

/// How often the lag of the groups is read for `/metrics`.
const LAG: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// Where to listen.
    pub(crate) http: http::Settings,
    /// The bus; a file in the data directory unless told.
    pub(crate) url: Option<Url>,
    /// What of its own log this process prints.
    pub(crate) log: telemetry::Settings,
    /// How long draining may take.
    pub(crate) drain: Duration,
    /// How long to wait for log records that an earlier process left on the bus to be stored.
    pub(crate) leftovers: Duration,
}

/// The running whole. Parts are added to it before it runs; they stop before what they stand on.
pub(crate) struct Stack {
    pub(crate) bus: Bus,
    pub(crate) tasks: Arc<dyn TaskStore>,
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) shipped: Arc<ShippingStats>,
    /// Log records that were there before this process shipped its first, by service.
    pub(crate) stored_before: BTreeMap<String, u64>,
    pub(crate) address: SocketAddr,
    pub(crate) parts: Parts,
}

impl Stack {
    /// Opens everything and starts serving. `worker` adds to what the worker runs beside the built-in tasks.
    pub(crate) async fn start(
        options: Options,
        worker: impl FnOnce(Worker, &Bus) -> Worker,
        schedules: Vec<Schedule>,
    ) -> anyhow::Result<Self> {
        let dir = &options.data_dir;
        private_files::create_folder(dir)
            .and_then(|()| private_files::narrow_folder(dir, is_ours))
            .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
        let shutdown = Shutdown::on_signals()?;
        // Logging begins before there is a bus; the records wait for it.
        let (layer, shipper) = shipping("backbone");
        let metrics = telemetry::init(&options.log, vec![Box::new(layer)])?;
        let listener = http::bind(&options.http).await?;
        let address = listener.local_addr()?;
        let url = match &options.url {
            Some(url) => url.expose().to_owned(),
            None => bus_in(dir)?,
        };
        let settings = Settings { source: "/backbone".into(), ..Settings::default() };
        let bus = Bus::from_env_with(Some(&url), settings).await?;

        let tasks = task_queue::store::open(&tasks_url(&url, dir)?).await?;
        TaskClient::new(tasks.clone()).install();
        let config = log_aggregator::Config::from_env(dir.join("logs"))?;
        let aggregator = Arc::new(Aggregator::open(config).await?);

        let health = Health::new("backbone", env!("CARGO_PKG_VERSION")).metrics(metrics).watch(&shutdown);
        let pinged = bus.clone();
        health.check("bus", move || {
            let bus = pinged.clone();
            async move { bus.admin().ping().await.map(drop) }
        });
        let asked = tasks.clone();
        health.check("tasks", move || {
            let tasks = asked.clone();
            async move { tasks.workers().await.map(drop) }
        });

        // Before anything is shipped: a bus that keeps no history would have nobody to give it to.
        aggregator.consume(&bus).await?;
        let stored_before = stored(&bus, &aggregator, options.leftovers).await?;
        let mut parts =
            Parts::new(shutdown.clone(), service_kit::shutdown::Settings { drain: options.drain });
        let shipping = shipper.start(bus.clone());
        let shipped = shipping.stats();
        let (closing, lag) = (bus.clone(), bus.export_lag(LAG));
        parts.add("bus", |stop| async move {
            stop.requested().await;
            // What is logged until here is on the bus, for the aggregator to find when it is up again.
            shipping.close(Duration::from_secs(5)).await;
            drop(lag);
            closing.close().await
        });
        let draining = aggregator.clone();
        parts.add("log aggregator", |stop| async move {
            stop.requested().await;
            draining.drain(Duration::from_secs(5)).await
        });
        let running = worker(builtin::register(Worker::new(tasks.clone()).with_state(bus.clone())), &bus);
        parts.add("worker", |stop| running.run_until(async move { stop.requested().await }));
        let beat = schedules.into_iter().fold(Beat::new(tasks.clone()), Beat::schedule);
        parts.add("beat", |stop| beat.run_until(async move { stop.requested().await }));
        let (serving, probes) = (aggregator.clone(), health.probes());
        parts.add("http", |stop| async move { serving.serve(listener, probes, stop).await });
        Ok(Self { bus, tasks, aggregator, shipped, stored_before, address, parts })
    }

    /// Runs until a signal or until a part ends, then drains.
    pub(crate) async fn run(self) -> Report {
        self.parts.run().await
    }
}

/// What the aggregator has stored once it has taken in what was left on the bus, or `patience` is over.
async fn stored(
    bus: &Bus,
    aggregator: &Aggregator,
    patience: Duration,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let groups = bus.admin().groups().await?;
        let open = |status: &GroupStatus| status.waiting + status.in_flight + status.retrying > 0;
        if !groups.iter().any(|status| status.group.as_str() == Aggregator::GROUP && open(status)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(aggregator.counts().await?)
}

/// The URL of the bus in the data directory, refused when the directory's name would mean something else there.
fn bus_in(dir: &Path) -> anyhow::Result<String> {
    // Without doubled slashes: two at the beginning are the authority of a URL.
    let path: PathBuf = dir.join("bus.db").components().collect();
    let escape = |text: &str| {
        let bytes = text.as_bytes();
        bytes.windows(3).any(|three| three[0] == b'%' && three[1..].iter().all(u8::is_ascii_hexdigit))
    };
    match path.to_str() {
        Some(text) if !text.contains(['?', '#']) && !text.contains(char::is_control) && !escape(text) => {
            Ok(format!("sqlite:{text}"))
        }
        _ => bail!(
            "the data directory {dir:?} cannot be part of a bus URL: choose a name in UTF-8 without `?`, `#`, `%` \
             before two digits, and control characters"
        ),
    }
}

/// Whether a name in the data directory is one that an earlier start has given.
fn is_ours(name: &str) -> bool {
    name == "logs" || name.starts_with("bus.db") || name.starts_with("bus-tasks.db")
}

/// Where the tasks are kept: in the store that `CELERY_BROKER_URL` names; else beside the bus's own file; else, when the bus
/// is a broker, in the data directory.
pub(crate) fn tasks_url(bus: &str, data_dir: &Path) -> anyhow::Result<String> {
    if std::env::var_os("CELERY_BROKER_URL").is_some_and(|value| !value.is_empty()) {
        return Ok(task_queue::command::resolve_url(None)?);
    }
    let beside = if bus.starts_with("sqlite:") { bus.to_owned() } else { bus_in(data_dir)? };
    Ok(task_queue::store::url_beside_bus(&beside)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_the_folder_that_it_names() {
        for (dir, url) in [
            ("backbone-data", "sqlite:backbone-data/bus.db"),
            ("/var/lib/a b", "sqlite:/var/lib/a b/bus.db"),
            ("//tmp/x", "sqlite:/tmp/x/bus.db"),
            ("100%", "sqlite:100%/bus.db"),
        ] {
            assert_eq!(bus_in(Path::new(dir)).expect(dir), url);
        }
        for dir in ["a?b", "a?synchronous=off", "a%20b", "a\nb", "a#b"] {
            let error = bus_in(Path::new(dir)).expect_err(dir).to_string();
            assert!(error.contains(&format!("{dir:?}")), "{error}");
        }
    }

    #[test]
    fn options_show_no_password() {
        let options = Options {
            data_dir: "data".into(),
            http: http::Settings::default(),
            url: Some(Url::new("nats://app:hunter2@host:4222")),
            log: telemetry::Settings::default(),
            drain: Duration::ZERO,
            leftovers: Duration::ZERO,
        };
        let shown = format!("{options:?}");
        assert!(shown.contains("app:***@host") && !shown.contains("hunter2"), "{shown}");
    }
}
