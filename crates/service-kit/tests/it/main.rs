//! The kit as a process uses it: over real sockets, with real signals, in real child processes.

mod child;
mod client;
mod config;
mod health;
mod http;
mod shutdown;
mod telemetry;

use std::time::Duration;

/// A bound for broken runs; a passing test never waits for it.
const DEADLINE: Duration = Duration::from_secs(30);
