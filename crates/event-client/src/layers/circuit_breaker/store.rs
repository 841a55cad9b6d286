//! Where circuits live: in this process, or in a store that the replicas of a service share.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A circuit as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CircuitState {
    /// Calls are made.
    Closed {
        /// Failures in a row so far.
        failures: u32,
    },
    /// Calls are not made.
    Open {
        /// Then a probe is.
        until: Timestamp,
    },
    /// A probe is on its way.
    HalfOpen {
        /// Then another is, if this one has not come back.
        until: Timestamp,
    },
}

impl CircuitState {
    /// `closed`, `open` or `half-open`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }

    /// For gauges: 0 closed, 1 half-open, 2 open.
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

/// Keeps the states of circuits.
pub trait CircuitStore: Send + Sync + 'static {
    /// The circuit of this name; asked once for each name and process.
    fn open(&self, name: &str) -> Arc<dyn CircuitCell>;
}

/// The state of one circuit.
///
/// Both methods are called on the way of every message and must not block: a store over the network keeps a local
/// copy, follows changes in the background, and writes behind. Being late is harmless, it costs a few more failures.
pub trait CircuitCell: Send + Sync + 'static {
    /// The state as last known.
    fn load(&self) -> CircuitState;

    /// Replaces `seen` by `next`; false when the state is no longer `seen`.
    fn swap(&self, seen: CircuitState, next: CircuitState) -> bool;
}

/// Circuits of this process alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCircuits;

impl CircuitStore for MemoryCircuits {
    fn open(&self, _: &str) -> Arc<dyn CircuitCell> {
        Arc::new(Mutex::new(CircuitState::default()))
    }
}

impl CircuitCell for Mutex<CircuitState> {
    fn load(&self) -> CircuitState {
        *self.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self, seen: CircuitState, next: CircuitState) -> bool {
        let mut state = self.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = *state == seen;
        if unchanged {
            *state = next;
        }
        unchanged
    }
}

/// The time of day by tokio's clock: the same for all processes, and it stands still where a test stops it.
pub(super) fn now() -> Timestamp {
    static START: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), Timestamp::now()));
    let (started, time) = *START;
    let passed = SignedDuration::try_from(Instant::now().saturating_duration_since(started));
    passed.ok().and_then(|passed| time.checked_add(passed).ok()).unwrap_or(Timestamp::MAX)
}

/// The time of day after `wait`.
pub(super) fn until(wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now().checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
