//! Runs the `backbone` program as a user does: arguments in, status and output back.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::binary;

/// The `backbone` program with its data in a folder of one test.
#[derive(Debug)]
pub struct Cli {
    url: String,
}

/// The output and result of a finished command.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Cli {
    /// Creates commands on a bus in this folder.
    pub fn new(folder: &Path) -> Self {
        Self { url: format!("sqlite:{}", folder.join("bus.db").display()) }
    }

    /// Creates commands on this bus.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned() }
    }

    /// Returns the URL of the bus.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns a command that is not started yet.
    ///
    /// # Panics
    /// When the program cannot be built.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("backbone", "backbone"));
        command
            .args(arguments)
            .env("EVENT_BUS_URL", &self.url)
            .env("RUST_LOG", "warn")
            .env_remove("NO_COLOR");
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it has not ended within a minute.
    pub async fn run(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(arguments);
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = timeout(Duration::from_secs(60), command.output()).await;
        let Output { status, stdout, stderr } = output
            .unwrap_or_else(|_| panic!("backbone {arguments:?} still runs after a minute"))
            .expect("it starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        Said { ok: status.success(), out: text(stdout), err: text(stderr) }
    }

    /// Runs a command that must succeed; returns its JSON lines.
    ///
    /// # Panics
    /// When it fails, or a line is not JSON.
    pub async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let said = self.run(&[arguments, &["--json"]].concat()).await;
        assert!(said.ok, "backbone {arguments:?} failed: {}", said.err);
        said.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }
}
