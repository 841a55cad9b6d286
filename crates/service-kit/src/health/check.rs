//! One dependency: how to ask it, and what it answered.

use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// How to ask one dependency.
pub(super) struct Check {
    name: String,
    required: bool,
    ask: Box<dyn Fn() -> Answer + Send + Sync>,
}

/// What one dependency answered.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Dependency {
    /// Its name.
    #[serde(skip)]
    pub name: String,
    /// Whether it is there.
    pub state: State,
    /// Whether this process can do without it.
    pub required: bool,
    /// How long the answer took, in milliseconds.
    pub latency_ms: f64,
    /// What is wrong, in the dependency's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a dependency is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// It answered.
    Connected,
    /// It answered with an error.
    Unavailable,
    /// It did not answer in time.
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

    /// Starts asking at once; the future waits for the answer. Dropping it stops the check.
    pub(super) fn start(self: Arc<Self>, timeout: Duration) -> impl Future<Output = Dependency> {
        let start = Instant::now();
        let asked = self.clone();
        // A task of its own: it runs beside the others, and its panic is an answer like another.
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
