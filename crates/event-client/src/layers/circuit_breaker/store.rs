//! The states of circuits, kept in this process or in a store that the replicas of a service share.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use event_transport::sync::lock;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CircuitState {
    /// Calls are made.
    Closed {
        /// Failures in a row so far.
        failures: u32,
    },
    /// No calls are made.
    Open {
        /// The time from which one call may be made as a probe.
        until: Timestamp,
    },
    /// One call is being made as a probe.
    HalfOpen {
        /// The time from which another probe may start if this one has no result by then.
        until: Timestamp,
    },
}

impl CircuitState {
    /// Returns the name of the state: `closed`, `open` or `half-open`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }

    /// Returns the value for gauges: 0 closed, 1 half-open, 2 open.
    pub(super) const fn level(&self) -> f64 {
        match self {
            Self::Closed { .. } => 0.0,
            Self::HalfOpen { .. } => 1.0,
            Self::Open { .. } => 2.0,
        }
    }
}

impl Default for CircuitState {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// Stores the states of circuits.
pub trait CircuitStore: Send + Sync + 'static {
    /// Returns the circuit of this name. A breaker and its clones call this once for each name, and more often beyond
    /// 4096 names.
    fn open(&self, name: &str) -> Arc<dyn CircuitCell>;
}

/// The state of one circuit.
///
/// Both methods are called for every message and must not block. A store over the network keeps a local copy, applies
/// remote changes to it in the background, and writes its own changes later (write-behind). A stale state does no
/// harm except a few more failed calls.
pub trait CircuitCell: Send + Sync + 'static {
    /// Returns the last known state.
    fn load(&self) -> CircuitState;

    /// Replaces `seen` by `next`; returns false when the state is no longer `seen`.
    fn swap(&self, seen: CircuitState, next: CircuitState) -> bool;
}

/// Keeps the states of circuits in this process only.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCircuits;

impl CircuitStore for MemoryCircuits {
    fn open(&self, _: &str) -> Arc<dyn CircuitCell> {
        Arc::new(Mutex::new(CircuitState::default()))
    }
}

impl CircuitCell for Mutex<CircuitState> {
    fn load(&self) -> CircuitState {
        *lock(self)
    }

    fn swap(&self, seen: CircuitState, next: CircuitState) -> bool {
        let mut state = lock(self);
        let unchanged = *state == seen;
        if unchanged {
            *state = next;
        }
        unchanged
    }
}

/// The time of day, advanced by tokio's clock: all processes have the same time, and it stands still while a test
/// pauses the clock.
pub(super) fn now() -> Timestamp {
    static START: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), Timestamp::now()));
    let (started, time) = *START;
    let passed = SignedDuration::try_from(Instant::now().saturating_duration_since(started));
    passed.ok().and_then(|passed| time.checked_add(passed).ok()).unwrap_or(Timestamp::MAX)
}

/// The time of day after `wait` has passed.
pub(super) fn until(wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now().checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
