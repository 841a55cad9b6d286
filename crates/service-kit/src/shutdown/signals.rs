//! Receives the signals that request a process to stop.

use crate::{Error, ErrorKind};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM (service managers, containers) and SIGINT (a terminal's Ctrl-C).
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers; from now on the signals are received here and no longer terminate the process.
    pub(super) fn watch() -> Result<Self, Error> {
        let open = |kind| {
            signal(kind).map_err(|error| {
                Error::new(ErrorKind::Signal, "cannot watch SIGTERM and SIGINT").because(error)
            })
        };
        Ok(Self { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            // Both streams end only with the runtime, which also drops this future.
            else => std::future::pending().await,
        }
    }
}
