//! Tasks of the library's own: none ends by a panic without what it serves ending, or going on, visibly.
//!
//! - A task that serves one subscription takes the subscription with it: its health is `Stopped`, and whoever runs it
//!   (a [`Service`](crate::service::Service), say) opens another.
//! - A task that a whole connection needs takes the connection with it: everything on it answers that it is closed.
//! - A task without state of its own ([`again`]) is started anew.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use crate::service::panic_text;

/// The longest pause before a task is started again that keeps dying.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs `work`; when it panics, that is logged and counted, and `died` is called after everything that `work` held is
/// dropped.
pub(crate) async fn run(name: &'static str, work: impl Future<Output = ()>, died: impl FnOnce()) {
    if panicked(name, work).await {
        died();
    }
}

/// Runs what `work` makes, and makes it anew after a panic: for tasks whose state is kept elsewhere.
pub(crate) async fn again<F: Future<Output = ()>>(name: &'static str, mut work: impl FnMut() -> F) {
    let mut pause = Duration::from_millis(20);
    while panicked(name, work()).await {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn panicked(name: &'static str, work: impl Future<Output = ()>) -> bool {
    #[cfg(feature = "testing")]
    let work = crate::testing::tasks::mortal(name, work);
    let Err(panic) = AssertUnwindSafe(work).catch_unwind().await else { return false };
    metrics::counter!("event_client_task_panics_total", "task" => name).increment(1);
    tracing::error!(
        task = name, panic = %panic_text(&*panic),
        "a task of the bus died, which is a defect of this library; what it served ends or is started again"
    );
    true
}
