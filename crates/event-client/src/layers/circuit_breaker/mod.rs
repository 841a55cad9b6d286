//! Circuit breaker: stops calling what keeps failing, and asks it now and then whether it is well again.
//!
//! A circuit is **closed** while calls succeed. After 5 failures in a row it **opens** for 60 s: calls are not made.
//! Then it is **half-open**: one call is let through as a probe; success closes the circuit, failure opens it anew.

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
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;
use store::{now, until};

/// A waiting event looks again this often, in case a shared store was changed by another process.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Opens after a number of failures in a row; see the [module](self).
///
/// There is one circuit for each handler or requested subject, or with [`named`](CircuitBreaker::named) one for all
/// that this value and its clones are put around. Only failures that are not the message's own fault count: errors
/// that ask for a retry, server-fault codes, timeouts of layers further in.
///
/// While a circuit is open, requests are refused at once (`UNAVAILABLE`), sent or served. Events wait in their
/// handler, leased and uncounted, until the circuit lets one through: no attempt is spent on a dependency that is
/// known to be down.
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
    /// 5 failures in a row open it for 60 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Failures in a row that open a circuit, at least one. Default 5.
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.settings.failures = failures.max(1);
        self
    }

    /// How long a circuit stays open before a probe. Default 60 s.
    #[must_use]
    pub fn open_for(mut self, time: Duration) -> Self {
        self.settings.open_for = time;
        self
    }

    /// One circuit of this name for everything this is put around, such as the database behind several handlers.
    #[must_use]
    pub fn named(mut self, name: impl Into<SmolStr>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where the circuits' states live, so that the replicas of a service may share them. Default: this process.
    #[must_use]
    pub fn store(mut self, store: impl CircuitStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// A circuit's state: of a handler's group, a requested subject, or the name given.
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
    /// Whether to go, and if so whether as a probe; otherwise how long it will be at the most.
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
            // A probe that does not come back is given up after as long as the circuit stays open.
            if self.change(state, CircuitState::HalfOpen { until: store::until(self.settings.open_for) }) {
                return Ok(true);
            }
        }
    }

    /// Waits for the circuit to let an event through.
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
                // A late success of before says nothing about now.
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

    /// The probe was given up without a result: another may go at once.
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

/// The right to one call through a circuit.
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
