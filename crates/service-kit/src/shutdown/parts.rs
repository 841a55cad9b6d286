//! Runs the parts of a process: starts them in the order in which they are added, and drains them in the reverse
//! order.

use super::{Report, Settings, Shutdown};
use crate::error::chain;
use settings::duration::LONGEST;
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Longest time that is reserved for each part whose turn to drain has not come yet.
const RESERVE: Duration = Duration::from_secs(1);

/// The stop request for one part.
#[derive(Debug, Clone)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Waits for the request: the part then has to accept no new work, finish its running work, flush, and return.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Returns whether the stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns it as a token, for libraries that take one.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

/// Runs the parts of a process until a stop is requested or one part ends, then drains them all.
///
/// First add the parts on which others depend (stores, the bus), last the parts that accept requests (HTTP): these
/// stop first. A part that ends without a request, with success or an error, ends the process. All parts together
/// have one time limit for draining; a part that exceeds its share does not prevent the others from draining.
#[derive(Debug)]
pub struct Parts {
    shutdown: Shutdown,
    bound: Duration,
    notice: Duration,
    tasks: JoinSet<Result<(), Failure>>,
    names: HashMap<Id, String>,
    order: Vec<(Id, Stop)>,
    finished: Vec<String>,
    failed: Vec<(String, String)>,
}

impl Parts {
    /// Makes an empty set of parts.
    pub fn new(shutdown: Shutdown, settings: Settings) -> Self {
        let (tasks, names, order) = (JoinSet::new(), HashMap::new(), Vec::new());
        Self {
            shutdown,
            bound: settings.drain.min(LONGEST),
            notice: settings.notice.min(LONGEST),
            tasks,
            names,
            order,
            finished: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Starts a part: a future that completes soon after its [`Stop`] is requested. Needs a tokio runtime.
    pub fn add<F, Fut, E>(&mut self, name: impl Into<String>, part: F)
    where
        F: FnOnce(Stop) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Failure>,
    {
        let stop = Stop(CancellationToken::new());
        let running = part(stop.clone());
        let task = self.tasks.spawn(async move { running.await.map_err(Into::into) });
        self.names.insert(task.id(), name.into());
        self.order.push((task.id(), stop));
    }

    /// Waits for the stop request or for a part to end, then drains the parts, last added first.
    pub async fn run(mut self) -> Report {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.asked() => self.give_notice().await,
            Some((name, ended)) = self.next() => {
                shutdown.ask(format!("{name} {}", if ended { "ended" } else { "failed" }));
            }
        }
        let why = shutdown.why().unwrap_or_default().to_owned();
        tracing::info!(reason = why, "stopping");
        let start = Instant::now();
        tokio::select! {
            () = self.drain(start + self.bound) => {}
            () = shutdown.forced() => {}
        }
        // The remaining parts are aborted when the set is dropped.
        let abandoned: Vec<String> =
            self.order.iter().rev().filter_map(|(id, _)| self.names.remove(id)).collect();
        if !abandoned.is_empty() {
            tracing::error!(parts = abandoned.join(", "), "abandoned while busy");
        }
        Report { why, finished: self.finished, failed: self.failed, abandoned, took: start.elapsed() }
    }

    /// Keeps all parts running for the notice time, in which `/ready` already reports the stop.
    async fn give_notice(&mut self) {
        if self.notice.is_zero() {
            return;
        }
        tracing::info!(notice = ?self.notice, "stop requested; /ready reports not ready from now on");
        let (shutdown, end) = (self.shutdown.clone(), Instant::now() + self.notice);
        loop {
            tokio::select! {
                biased;
                () = shutdown.forced() => return,
                () = sleep_until(end) => return,
                Some(_) = self.next() => {}
            }
        }
    }

    /// Requests each part to stop in turn, then waits for the remaining parts until `end`.
    async fn drain(&mut self, end: Instant) {
        let reserve = RESERVE.min(self.bound / 10);
        for waiting in (0..self.order.len()).rev() {
            let (id, stop) = self.order[waiting].clone();
            stop.0.cancel();
            let turn = end - reserve * u32::try_from(waiting).unwrap_or(u32::MAX).min(9);
            while self.names.contains_key(&id) {
                tokio::select! {
                    biased; // a part that has finished by now counts as finished
                    _ = self.next() => {}
                    () = sleep_until(turn) => {
                        tracing::warn!(part = self.names[&id], "still busy; the next part starts to drain");
                        break;
                    }
                }
            }
        }
        while !self.names.is_empty() {
            tokio::select! {
                biased;
                _ = self.next() => {}
                () = sleep_until(end) => return,
            }
        }
    }

    /// Waits for any part to end and records its result; returns its name, and whether it ended with success.
    async fn next(&mut self) -> Option<(String, bool)> {
        let (id, outcome) = match self.tasks.join_next_with_id().await? {
            Ok((id, Ok(()))) => (id, None),
            Ok((id, Err(failure))) => (id, Some(chain(&*failure))),
            Err(error) => (error.id(), Some(panicked(error))),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        let ended = outcome.is_none();
        match outcome {
            None => self.finished.push(name.clone()),
            Some(error) => {
                tracing::error!(part = name, error, "part failed");
                self.failed.push((name.clone(), error));
            }
        }
        Some((name, ended))
    }
}

fn panicked(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "cancelled".into() };
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("?"))
}
