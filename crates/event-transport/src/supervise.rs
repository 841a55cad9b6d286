//! Panic handling for the library's own tasks: each panic is logged and counted, and has one of these effects.
//!
//! - A task that serves one subscription ends the subscription: its health becomes `Rebuilding` or `Stopped`, and its
//!   owner (for example a `Service`) opens another.
//! - A task that serves a whole connection closes the connection: every operation on it returns that it is closed.
//! - A task without state of its own ([`again`]) is restarted.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use smol_str::SmolStr;

use crate::backoff::Backoff;

/// The pauses before a task that panics repeatedly is restarted.
const RESTART: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(30));

/// Runs `work`. A panic is logged and counted, and then `died` is called, after everything that `work` owned has been
/// dropped.
pub async fn run(name: &'static str, work: impl Future<Output = ()>, died: impl FnOnce()) {
    if panicked(name, work).await {
        died();
    }
}

/// Runs the future that `work` returns, and calls `work` again after a panic: for tasks whose state is elsewhere.
pub async fn again<F: Future<Output = ()>>(name: &'static str, mut work: impl FnMut() -> F) {
    let mut backoff = RESTART;
    while panicked(name, work()).await {
        backoff.pause().await;
    }
}

async fn panicked(name: &'static str, work: impl Future<Output = ()>) -> bool {
    #[cfg(feature = "testing")]
    let work = crate::tasks::mortal(name, work);
    let Err(panic) = AssertUnwindSafe(work).catch_unwind().await else { return false };
    metrics::counter!("event_client_task_panics_total", "task" => name).increment(1);
    tracing::error!(
        task = name, panic = %panic_text(&*panic),
        "a task of the bus panicked, which is a defect of this library; its subscription or connection ends, or it is restarted"
    );
    true
}

/// Returns the text of a panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> SmolStr {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no text").into()
}
