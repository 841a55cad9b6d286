//! Shuts a process down: a signal requests the stop, the parts drain one after the other within a time limit, and a
//! report lists the abandoned parts.

mod parts;
mod report;
mod signals;

use crate::Error;
use serde::Deserialize;
use signals::Signals;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub use parts::{Parts, Stop};
pub use report::Report;

/// Time limits of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Longest time for all parts together to drain; default 25 s, below the 30 s after which Kubernetes kills a
    /// process.
    #[serde(with = "settings::duration::text")]
    pub drain: Duration,
    /// Time between the stop request and the stop of the first part; default 0. During it `/ready` already answers
    /// 503 and every listener still accepts connections, so that a load balancer removes the process before it
    /// refuses connections. It is added to `drain`; a second signal ends it. Kubernetes: use `5s`, with
    /// `terminationGracePeriodSeconds` above `notice` plus `drain`.
    #[serde(with = "settings::duration::text")]
    pub notice: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { drain: Duration::from_secs(25), notice: Duration::ZERO }
    }
}

/// A stop request for the whole process, which can be forced. Clones share the same state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    asked: CancellationToken,
    forced: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// Makes one that only [`ask`](Self::ask) triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one that SIGTERM or SIGINT triggers; a second signal forces it. After this call the signals no longer
    /// terminate the process. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> Result<Self, Error> {
        let mut signals = Signals::watch()?;
        let shutdown = Self::new();
        let watched = shutdown.clone();
        tokio::spawn(async move {
            watched.ask(signals.next().await);
            let again = signals.next().await;
            tracing::warn!("{again} again: stopping at once");
            watched.force();
        });
        Ok(shutdown)
    }

    /// Requests the stop; the first reason is kept.
    pub fn ask(&self, why: impl Into<String>) {
        // Set the reason before the token, so that a woken task finds it.
        if self.why.set(why.into()).is_ok() {
            self.asked.cancel();
        }
    }

    /// Stops waiting for parts that drain.
    pub fn force(&self) {
        self.ask("force");
        self.forced.cancel();
    }

    /// Waits for the stop request.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Returns whether the stop was requested.
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Waits until the shutdown is forced.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }

    /// Returns the reason of the first stop request.
    pub fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}

/// Waits for SIGTERM or SIGINT and returns its name, for programs with a single part. If the signal handlers cannot
/// be installed, it logs the error and the future never completes.
pub async fn signal() -> &'static str {
    match Signals::watch() {
        Ok(mut signals) => signals.next().await,
        Err(error) => {
            tracing::error!("{error}");
            std::future::pending().await
        }
    }
}
