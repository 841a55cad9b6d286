//! Runs a part of a test in a child process, because signals and global set-up concern whole processes.

use crate::DEADLINE;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// The variable that contains the role of a child.
pub(crate) const ROLE: &str = "SERVICE_KIT_TEST_ROLE";

/// Returns the role of this process; `None` in the parent.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A child process of this test binary that runs only `test`, with a role.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Process {
    pub(crate) fn start(test: &str, role: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env_remove("RUST_BACKTRACE")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the child starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Reads standard error up to a line that contains `text`.
    pub(crate) async fn line(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let search = async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                if line.contains(text) {
                    return Some(line);
                }
                seen.push(line);
            }
            None
        };
        let found = timeout(DEADLINE, search).await;
        found.ok().flatten().unwrap_or_else(|| panic!("no {text:?} in:\n{}", seen.join("\n")))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().expect("it runs").cast_signed()).expect("not zero");
        kill_process(id, signal).expect("our own child");
    }

    pub(crate) async fn exit(mut self) -> ExitStatus {
        timeout(DEADLINE, self.child.wait()).await.expect("it ends in time").expect("it was started")
    }
}
