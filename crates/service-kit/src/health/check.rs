//! Runs the check of one dependency in a task of its own, with a time limit, and reports the result.

use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// The check of one dependency.
pub(super) struct Check {
    name: String,
    required: bool,
    ask: Box<dyn Fn() -> Answer + Send + Sync>,
}

/// The result of one check.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Dependency {
    /// Its name.
    #[serde(skip)]
    pub name: String,
    /// Whether it is available.
    pub state: State,
    /// Whether this process needs it to work.
    pub required: bool,
    /// Duration of the check, in milliseconds.
    pub latency_ms: f64,
    /// The error text of the check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Availability of a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// The check succeeded.
    Connected,
    /// The check returned an error.
    Unavailable,
    /// The check exceeded its time limit.
    Timeout,
}

impl Check {
    pub(super) fn new<F, Fut, E>(name: String, required: bool, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let ask = Box::new(move || -> Answer {
            let answer = check();
            Box::pin(async move { answer.await.map_err(|error| error.to_string()) })
        });
        Self { name, required, ask }
    }

    /// Starts the check at once; the returned future waits for the result. Dropping the future stops the check.
    pub(super) fn start(self: Arc<Self>, timeout: Duration) -> impl Future<Output = Dependency> {
        let start = Instant::now();
        let asked = self.clone();
        // In a separate task, so that checks run concurrently and a panic becomes a normal result.
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = tokio::time::timeout(timeout, async { (asked.ask)().await }).await;
            (answer, start.elapsed())
        }));
        async move {
            let (answer, took) = match task.await {
                Ok((Ok(answer), took)) => (answer.map_err(|error| (State::Unavailable, error)), took),
                Ok((Err(_), took)) => (Err((State::Timeout, format!("no answer within {timeout:?}"))), took),
                Err(_) => (Err((State::Unavailable, "the check panicked".to_owned())), start.elapsed()),
            };
            let (state, error) = match answer {
                Ok(()) => (State::Connected, None),
                Err((state, error)) => (state, Some(error)),
            };
            let latency_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
            Dependency { name: self.name.clone(), state, required: self.required, latency_ms, error }
        }
    }
}
