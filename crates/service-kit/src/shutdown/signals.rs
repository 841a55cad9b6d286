//! The signals by which an operating system asks a process to stop.

use crate::{Error, Kind};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM (service managers, containers) and SIGINT (a terminal's Ctrl-C).
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals come here.
    pub(super) fn watch() -> Result<Self, Error> {
        let open = |kind| {
            signal(kind)
                .map_err(|error| Error::new(Kind::Signal, "cannot watch SIGTERM and SIGINT").because(error))
        };
        Ok(Self { terminate: open(SignalKind::terminate())?, interrupt: open(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            // Both streams end with the runtime, which takes this future along.
            else => std::future::pending().await,
        }
    }
}
