//! HTTP health checks and metrics of a process.
//!
//! | path | response |
//! |---|---|
//! | `/health`, `/api/health/` | 200 while the process runs: `status`, `service`, `timestamp`, `version`, and [fields](Health::field) |
//! | `/health/detailed` | each dependency with state and latency; 200, or 503 when a required one is not available |
//! | `/ready` | 200 when the process accepts work; 503 with reasons while it is stopping or while a required dependency is not available |
//! | `/metrics` | metrics for Prometheus |

mod check;
mod router;

use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use check::Check;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub use check::{Dependency, State};

/// Default of [`Health::timeout`].
const TIMEOUT: Duration = Duration::from_secs(2);

type Field = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// The health checks of a process. Clones share the checks, which may be added at any time.
#[derive(Clone)]
pub struct Health {
    service: Arc<str>,
    version: Arc<str>,
    timeout: Duration,
    shutdown: Option<Shutdown>,
    metrics: Option<Metrics>,
    checks: Arc<RwLock<Vec<Arc<Check>>>>,
    fields: Arc<RwLock<Vec<(String, Field)>>>,
}

impl Health {
    /// Makes the health state of a service with this name and version, without checks.
    pub fn new(service: impl Into<Arc<str>>, version: impl Into<Arc<str>>) -> Self {
        Self {
            service: service.into(),
            version: version.into(),
            timeout: TIMEOUT,
            shutdown: None,
            metrics: None,
            checks: Arc::default(),
            fields: Arc::default(),
        }
    }

    /// Sets the time limit of a check; default 2 s. Checks run concurrently, so this limits the whole response time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes `/ready` answer 503 after `shutdown` is requested, so that no new work is sent here while parts drain.
    pub fn watch(mut self, shutdown: &Shutdown) -> Self {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// Serves these metrics at `/metrics`.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Adds a dependency that this process needs: `check` returns `Ok` when it is available. A check that panics or
    /// exceeds the time limit counts as not available.
    pub fn check<F, Fut, E>(&self, name: impl Into<String>, check: F) -> &Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.add(Check::new(name.into(), true, check))
    }

    /// Adds an optional dependency: if it is not available, the state is `degraded`, with status 200.
    pub fn optional<F, Fut, E>(&self, name: impl Into<String>, check: F) -> &Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.add(Check::new(name.into(), false, check))
    }

    /// Adds a field to the response of `/health`, computed for each request; the function must be quick.
    pub fn field<F>(&self, name: impl Into<String>, value: F) -> &Self
    where
        F: Fn() -> serde_json::Value + Send + Sync + 'static,
    {
        self.fields.write().unwrap_or_else(PoisonError::into_inner).push((name.into(), Arc::new(value)));
        self
    }

    /// Checks all dependencies concurrently; returns them in the order in which they were added.
    pub async fn dependencies(&self) -> Vec<Dependency> {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner).clone();
        let running: Vec<_> = checks.into_iter().map(|check| check.start(self.timeout)).collect();
        let mut dependencies = Vec::with_capacity(running.len());
        for check in running {
            dependencies.push(check.await);
        }
        dependencies
    }

    fn add(&self, check: Check) -> &Self {
        self.checks.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(check));
        self
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("service", &self.service)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
