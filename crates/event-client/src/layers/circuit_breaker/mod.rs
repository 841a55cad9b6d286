//! Circuit breaker: stops calls to a dependency that keeps failing, and tests with single calls whether it works
//! again.
//!
//! A circuit is **closed** while calls succeed. After 5 failures in a row it **opens** for 60 s: no calls are made.
//! Then it is **half-open**: one call is made as a probe. If the probe succeeds, the circuit closes; if it fails, the
//! circuit opens again.

mod store;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use smol_str::SmolStr;
use tokio::sync::Notify;
use tower_layer::Layer;

pub use store::{CircuitCell, CircuitState, CircuitStore, MemoryCircuits};

use super::admission::{Admission, AdmissionService, Decision, Permit, wait_for};
use super::operation::{Class, Classify, Kind, Operation, classify};
use super::registry::Registry;
use crate::telemetry;
use event_transport::error::{Error, ErrorKind, Result};
use store::{now, until};

/// A waiting event checks the circuit at least this often, because another process may have changed a shared store.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Stops calls after a number of failures in a row.
///
/// There is one circuit for each handler or requested subject. With [`named`](CircuitBreaker::named) there is one
/// circuit for all services and clients that this value and its clones wrap. Only failures that the message itself
/// does not cause are counted: errors that request a retry, status codes of server faults, and timeouts of inner
/// layers.
///
/// While a circuit is open, a request fails at once with `UNAVAILABLE`, whether it is sent or served. An event waits
/// in its handler until the circuit admits it: it stays leased and the wait does not count as an attempt, so no
/// attempt is spent on a dependency that is known to be unavailable.
#[derive(Clone)]
pub struct CircuitBreaker {
    settings: Settings,
    name: Option<SmolStr>,
    store: Arc<dyn CircuitStore>,
    circuits: Registry<Circuit>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    failures: u32,
    open_for: Duration,
}

impl CircuitBreaker {
    /// Creates a breaker whose circuits open for 60 s after 5 failures in a row.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of failures in a row that open a circuit, at least 1. Default 5.
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.settings.failures = failures.max(1);
        self
    }

    /// Sets the time that a circuit stays open before a probe. Default 60 s.
    #[must_use]
    pub fn open_for(mut self, time: Duration) -> Self {
        self.settings.open_for = time;
        self
    }

    /// Uses one circuit of this name for all services and clients that the breaker wraps, such as the handlers that
    /// use one database.
    #[must_use]
    pub fn named(mut self, name: impl Into<SmolStr>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the store of the circuits' states, so that the replicas of a service can share them. Default
    /// [`MemoryCircuits`]: this process only.
    #[must_use]
    pub fn store(mut self, store: impl CircuitStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Returns the state of a circuit by name: a handler's group, a requested subject, or the name set with
    /// [`named`](CircuitBreaker::named). A circuit that has not been used is closed.
    pub fn state(&self, name: &str) -> CircuitState {
        self.circuits.find(name).map_or_else(CircuitState::default, |circuit| circuit.cell.load())
    }

    fn circuit(&mut self, name: &str) -> &Arc<Circuit> {
        let (store, settings) = (&self.store, self.settings);
        self.circuits.get(name, || Circuit {
            name: name.into(),
            cell: store.open(name),
            settings,
            changed: Notify::new(),
        })
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            settings: Settings { failures: 5, open_for: Duration::from_secs(60) },
            name: None,
            store: Arc::new(MemoryCircuits),
            circuits: Registry::default(),
        }
    }
}

impl<S> Layer<S> for CircuitBreaker {
    type Service = AdmissionService<Self, S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService::new(self.clone(), inner)
    }
}

impl Admission for CircuitBreaker {
    type Permit = Pass;

    fn enter<T: Operation>(&mut self, operation: &T) -> Decision<Pass> {
        let named = self.name.clone();
        let circuit = self.circuit(named.as_deref().unwrap_or(operation.name()));
        match circuit.try_pass() {
            Ok(probe) => Decision::Admit(Pass { circuit: circuit.clone(), probe }),
            Err(wait) if operation.kind() == Kind::Process => {
                let turn = circuit.clone().turn(wait);
                Decision::Wait(wait_for(operation, "the circuit stayed open past the deadline", turn))
            }
            Err(wait) => Decision::Refused(
                Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "not called: the circuit is open after repeated failures, ask again in {wait:.0?}"
                    ),
                )
                .with("circuit", &circuit.name),
            ),
        }
    }
}

/// One circuit in this process.
struct Circuit {
    name: SmolStr,
    cell: Arc<dyn CircuitCell>,
    settings: Settings,
    /// Wakes waiting events when this process has changed the state.
    changed: Notify,
}

impl Circuit {
    /// Tries to pass: `Ok(true)` admits the call as a probe, `Ok(false)` as a normal call; `Err` is the longest time
    /// until the circuit may admit a call.
    fn try_pass(&self) -> Result<bool, Duration> {
        loop {
            let state = self.cell.load();
            let until = match state {
                CircuitState::Closed { .. } => return Ok(false),
                CircuitState::Open { until } | CircuitState::HalfOpen { until } => until,
            };
            let left = until.duration_since(now());
            if left.is_positive() {
                return Err(left.unsigned_abs());
            }
            // A probe without a result is given up after `open_for`; then another probe may start.
            if self.change(state, CircuitState::HalfOpen { until: store::until(self.settings.open_for) }) {
                return Ok(true);
            }
        }
    }

    /// Waits until the circuit admits an event.
    fn turn(self: Arc<Self>, mut wait: Duration) -> BoxFuture<'static, Pass> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                let _ = tokio::time::timeout(wait.min(LOOK_AGAIN), changed).await;
                match self.try_pass() {
                    Ok(probe) => return Pass { circuit: self, probe },
                    Err(longer) => wait = longer,
                }
            }
        })
    }

    fn succeeded(&self, probe: bool) {
        loop {
            let state = self.cell.load();
            match state {
                CircuitState::Closed { failures: 0 } => return,
                CircuitState::Closed { .. } => {}
                CircuitState::HalfOpen { .. } if probe => {}
                // A call that started before the circuit opened has succeeded late. That does not show that the
                // dependency works now.
                _ => return,
            }
            if self.change(state, CircuitState::default()) {
                return;
            }
        }
    }

    fn failed(&self, probe: bool) {
        loop {
            let state = self.cell.load();
            let next = match state {
                CircuitState::Closed { failures } if failures + 1 < self.settings.failures => {
                    CircuitState::Closed { failures: failures + 1 }
                }
                CircuitState::Closed { .. } => CircuitState::Open { until: until(self.settings.open_for) },
                CircuitState::HalfOpen { .. } if probe => {
                    CircuitState::Open { until: until(self.settings.open_for) }
                }
                _ => return,
            };
            if self.change(state, next) {
                return;
            }
        }
    }

    /// The probe was cancelled without a result: another probe may start at once.
    fn probe_lost(&self) {
        let state = self.cell.load();
        if matches!(state, CircuitState::HalfOpen { .. }) {
            self.change(state, CircuitState::Open { until: now() });
        }
    }

    fn change(&self, seen: CircuitState, next: CircuitState) -> bool {
        if !self.cell.swap(seen, next) {
            return false;
        }
        if seen.as_str() != next.as_str() {
            let circuit = self.name.as_str();
            match next {
                CircuitState::Open { .. } => {
                    tracing::warn!(circuit, open_for_s = self.settings.open_for.as_secs(), "circuit opened");
                }
                CircuitState::Closed { .. } => tracing::info!(circuit, "circuit closed"),
                CircuitState::HalfOpen { .. } => tracing::info!(circuit, "circuit half-open, probing"),
            }
            metrics::gauge!(telemetry::CIRCUIT_STATE, telemetry::CIRCUIT => self.name.to_string())
                .set(next.level());
            self.changed.notify_waiters();
        }
        true
    }
}

/// The right to make one call through a circuit.
pub struct Pass {
    circuit: Arc<Circuit>,
    probe: bool,
}

impl Permit for Pass {
    fn leave<R: Classify>(mut self, result: &Result<R>) {
        let probe = std::mem::take(&mut self.probe);
        match classify(result) {
            Class::Failed => self.circuit.failed(probe),
            Class::Success | Class::Refused => self.circuit.succeeded(probe),
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe {
            self.circuit.probe_lost();
        }
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("circuit", &self.circuit.name).field("probe", &self.probe).finish()
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("settings", &self.settings)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
