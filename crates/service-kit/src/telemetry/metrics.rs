//! Collects the metrics that the process records with the `metrics` crate, and renders them as text for Prometheus.

use crate::{Error, ErrorKind};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Bounds of duration histograms, in seconds: from a local publish (tens of microseconds) to a slow task.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// Upper bounds of the buckets of ages, in seconds: from an event that is handled at once to a backlog of a day.
const AGES: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0, 86_400.0];

/// Interval at which observed values are added to their histograms; otherwise they would accumulate in memory until
/// the next scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// Renders the metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder of this process; later calls return the same one.
    ///
    /// Names follow Prometheus' conventions: counters end in `_total`, described durations in `_seconds`. Histograms
    /// whose names end in `duration`, `seconds` or `age` have buckets in seconds; others are summaries.
    ///
    /// # Errors
    /// When another recorder is already installed.
    pub fn install() -> Result<Self, Error> {
        static INSTALLED: OnceLock<Metrics> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = INSTALLED.get() {
            return Ok(metrics.clone());
        }
        let failed =
            |error| Error::new(ErrorKind::Telemetry, "cannot install the metrics recorder").because(error);
        let mut builder = PrometheusBuilder::new().with_recommended_naming(true);
        for (end, bounds) in [("duration", SECONDS), ("seconds", SECONDS), ("age", AGES)] {
            builder = builder.set_buckets_for_metric(Matcher::Suffix(end.into()), bounds).map_err(failed)?;
        }
        let handle = builder.install_recorder().map_err(failed)?;
        let upkeep = handle.clone();
        // A separate thread: it outlives every runtime, and a process may have several runtimes (tests).
        std::thread::Builder::new()
            .name("metrics-upkeep".into())
            .spawn(move || {
                loop {
                    std::thread::park_timeout(UPKEEP);
                    upkeep.run_upkeep();
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Telemetry, "cannot start the thread of the metrics").because(error)
            })?;
        Ok(INSTALLED.get_or_init(|| Self(handle)).clone())
    }

    /// Returns the metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
