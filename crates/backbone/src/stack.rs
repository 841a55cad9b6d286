//! Runs all parts in one process: bus, task worker, scheduler, log aggregator and its web page.

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

/// Interval at which the lag of the groups is read for `/metrics`.
const LAG: Duration = Duration::from_secs(10);

/// Settings of a [`Stack`].
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Directory of all data.
    pub(crate) data_dir: PathBuf,
    /// Address and port to listen on, with the allowed hosts and origins.
    pub(crate) http: http::Settings,
    /// URL of the bus; default: a SQLite file in the data directory.
    pub(crate) url: Option<Url>,
    /// Settings of the log lines that this process prints.
    pub(crate) log: telemetry::Settings,
    /// Limits of the log port.
    pub(crate) logs: log_aggregator::Config,
    /// Time limits of the shutdown.
    pub(crate) shutdown: service_kit::shutdown::Settings,
    /// Longest time to wait until log records that an earlier process left on the bus are stored.
    pub(crate) leftovers: Duration,
}

/// All running parts. Further parts can be added before [`run`](Self::run); the parts stop in the reverse order of
/// their start, so that each stops before the parts that it uses.
pub(crate) struct Stack {
    pub(crate) bus: Bus,
    pub(crate) tasks: Arc<dyn TaskStore>,
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) shipped: Arc<ShippingStats>,
    /// Numbers of stored log records before this process shipped its first one, by service.
    pub(crate) stored_before: BTreeMap<String, u64>,
    pub(crate) address: SocketAddr,
    pub(crate) parts: Parts,
}

impl Stack {
    /// Opens the bus and the stores, and starts all parts. `worker` registers further tasks beside the built-in ones.
    pub(crate) async fn start(
        options: Options,
        worker: impl FnOnce(Worker, &Bus) -> Worker,
        schedules: Vec<Schedule>,
    ) -> anyhow::Result<Self> {
        let dir = &options.data_dir;
        private_files::create_folder(dir)
            .and_then(|()| private_files::narrow_folder(dir, is_ours))
            .with_context(|| format!("cannot create the data directory {}", dir.display()))?;
        let shutdown = Shutdown::on_signals()?;
        // Logging starts before the bus is open; the records are queued until then.
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
        let mut config = options.logs.clone();
        config.dir = dir.join("logs");
        let pages = console::Settings::of(&config);
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

        // Subscribe before any record is shipped: a bus without history would drop records that no group receives.
        aggregator.consume(&bus).await?;
        let stored_before = stored(&bus, &aggregator, options.leftovers).await?;
        let mut parts = Parts::new(shutdown.clone(), options.shutdown);
        let shipping = shipper.start(bus.clone());
        let shipped = shipping.stats();
        let (closing, lag) = (bus.clone(), bus.export_lag(LAG));
        parts.add("bus", |stop| async move {
            stop.requested().await;
            // All records logged so far are shipped to the bus, where the aggregator finds them at its next start.
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
        let router = console::mount(aggregator.router(), &pages).merge(health.probes());
        let serving = aggregator.clone();
        parts.add("http", |stop| async move { serving.serve(listener, router, stop).await });
        Ok(Self { bus, tasks, aggregator, shipped, stored_before, address, parts })
    }

    /// Runs until a signal arrives or a part ends, then drains.
    pub(crate) async fn run(self) -> Report {
        self.parts.run().await
    }
}

/// Returns the number of stored records of each service, after the aggregator has stored all records left on the bus
/// or `patience` has passed.
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

/// Returns the URL of the bus file in the data directory; refuses a directory name that would have another meaning in
/// a URL.
fn bus_in(dir: &Path) -> anyhow::Result<String> {
    // Remove doubled slashes: two at the beginning would start the authority of a URL.
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
             before two hexadecimal digits, and control characters"
        ),
    }
}

/// Returns whether an earlier start may have created this name in the data directory.
fn is_ours(name: &str) -> bool {
    name == "logs" || name.starts_with("bus.db") || name.starts_with("bus-tasks.db")
}

/// Returns the URL of the task store: the value of `CELERY_BROKER_URL`; otherwise beside the bus's own file;
/// otherwise, when the bus is a broker, in the data directory.
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
            logs: log_aggregator::Config::default(),
            shutdown: service_kit::shutdown::Settings::default(),
            leftovers: Duration::ZERO,
        };
        let shown = format!("{options:?}");
        assert!(shown.contains("app:***@host") && !shown.contains("hunter2"), "{shown}");
    }
}
