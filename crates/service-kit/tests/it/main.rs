//! Integration tests over real sockets, with real signals, in real child processes.

mod child;
mod client;
mod config;
mod health;
mod http;
mod shutdown;
mod telemetry;

use std::time::Duration;

/// Time limit for a failing test; a passing test never reaches it.
const DEADLINE: Duration = Duration::from_secs(30);
