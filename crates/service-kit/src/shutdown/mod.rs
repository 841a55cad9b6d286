//! How a process ends: asked by a signal, part by part, within a bound, saying what it had to abandon.

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

/// How long ending may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The bound for all parts together; default 25 s, below the 30 s that Kubernetes grants before it kills.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { drain: Duration::from_secs(25) }
    }
}

/// Whether the process is asked to stop, and whether at once. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    asked: CancellationToken,
    forced: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// One that only [`ask`](Self::ask) triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM or SIGINT triggers; a second signal forces it. The signals no longer end the process by
    /// themselves once this returns. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the signals cannot be watched.
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

    /// Asks to stop; the first reason stays.
    pub fn ask(&self, why: impl Into<String>) {
        // The reason is set before the token, so whoever wakes finds it.
        if self.why.set(why.into()).is_ok() {
            self.asked.cancel();
        }
    }

    /// Gives up waiting for parts that drain.
    pub fn force(&self) {
        self.ask("force");
        self.forced.cancel();
    }

    /// Waits until somebody asks.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Waits until draining is given up.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }

    /// The reason of the first who asked.
    pub fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}

/// Waits for SIGTERM or SIGINT and returns its name: for programs with a single part. When signals cannot be
/// watched, that is logged and the future never ends.
pub async fn signal() -> &'static str {
    match Signals::watch() {
        Ok(mut signals) => signals.next().await,
        Err(error) => {
            tracing::error!("{error}");
            std::future::pending().await
        }
    }
}
