//! Runs this program again as a child process, and reads its result from standard output.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::timeout;

/// Returns the command that starts this program with `arguments`. Its standard error is collected for the reason of a
/// failure.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    // Without a backtrace the reason is the last line of standard error.
    command.env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Returns the last line of a child's standard error.
pub fn reason(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().next_back().unwrap_or("no reason given").to_owned()
}

/// Runs this program with `arguments` and returns the JSON value that it prints.
pub async fn json<T: DeserializeOwned>(arguments: &[&str], patience: Duration) -> Result<T> {
    let Ok(done) = timeout(patience, command(arguments)?.output()).await else {
        bail!("not done within {patience:?}");
    };
    let done = done?;
    if !done.status.success() {
        bail!("{}", reason(&done.stderr));
    }
    serde_json::from_slice(&done.stdout).context("the result of a child")
}
