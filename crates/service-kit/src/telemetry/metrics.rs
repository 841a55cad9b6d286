//! The process' metrics: whatever is counted through the `metrics` crate, as text for Prometheus.

use crate::{Error, Kind};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Bounds of duration histograms, in seconds: from a local publish (tens of microseconds) to a slow task.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// How often observed values are folded into their histograms; without it they pile up until somebody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Renders the metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder of this process; later calls return the same one.
    ///
    /// Histograms whose names end in `duration` or `seconds` get buckets in seconds, others are summaries.
    ///
    /// # Errors
    /// When another recorder was installed by other means.
    pub fn install() -> Result<Self, Error> {
        static INSTALLED: OnceLock<Metrics> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = INSTALLED.get() {
            return Ok(metrics.clone());
        }
        let failed =
            |error| Error::new(Kind::Telemetry, "cannot install the metrics recorder").because(error);
        let mut builder = PrometheusBuilder::new();
        for end in ["duration", "seconds"] {
            builder = builder.set_buckets_for_metric(Matcher::Suffix(end.into()), SECONDS).map_err(failed)?;
        }
        let handle = builder.install_recorder().map_err(failed)?;
        let upkeep = handle.clone();
        // A thread of its own: it outlives every runtime, and there may be several in one process (tests).
        std::thread::Builder::new()
            .name("metrics-upkeep".into())
            .spawn(move || {
                loop {
                    std::thread::park_timeout(UPKEEP);
                    upkeep.run_upkeep();
                }
            })
            .map_err(|error| {
                Error::new(Kind::Telemetry, "cannot start the thread of the metrics").because(error)
            })?;
        Ok(INSTALLED.get_or_init(|| Self(handle)).clone())
    }

    /// The metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
