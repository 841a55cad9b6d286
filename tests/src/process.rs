//! A child process of a test: its output is stored, can be waited for, and is shown on failure; dropping the
//! guard kills it.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

pub use rustix::process::Signal;

/// A running program. Dropping it kills it (SIGKILL), so that a failing test leaves no process behind.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: watch::Receiver<Vec<String>>,
}

impl Process {
    /// Starts `command` with standard input closed and both outputs read into memory line by line.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(mut command: Command) -> Self {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (sender, lines) = watch::channel(Vec::new());
        let sender = Arc::new(sender);
        collect(child.stdout.take().expect("standard output is piped"), sender.clone());
        collect(child.stderr.take().expect("standard error is piped"), sender);
        Self { name, child, lines }
    }

    /// Returns the process id; none once its exit was observed.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for a line of either output that contains `text` and returns it; lines already seen count.
    ///
    /// # Panics
    /// When the outputs end or `deadline` passes first; the message holds everything the program wrote.
    pub async fn line(&mut self, deadline: Duration, text: &str) -> String {
        let mut lines = self.lines.clone();
        let found =
            timeout(deadline, lines.wait_for(|lines| lines.iter().any(|line| line.contains(text)))).await;
        let found = matches!(found, Ok(Ok(_)));
        let line = self.lines.borrow().iter().find(|line| line.contains(text)).cloned();
        line.filter(|_| found).unwrap_or_else(|| {
            panic!("{} did not write {text:?} within {deadline:?}; it wrote:\n{}", self.name, self.output())
        })
    }

    /// Returns everything written so far, both outputs, in the order of arrival.
    pub fn output(&self) -> String {
        self.lines.borrow().join("\n")
    }

    /// Sends a signal: [`Signal::TERM`] requests a stop, [`Signal::KILL`] simulates a crash.
    ///
    /// # Panics
    /// When the process has already ended.
    pub fn signal(&self, signal: Signal) {
        let id = self.id().unwrap_or_else(|| panic!("{} has ended; it wrote:\n{}", self.name, self.output()));
        let id = rustix::process::Pid::from_raw(id.cast_signed()).expect("a process id is not zero");
        rustix::process::kill_process(id, signal).expect("our own child can be signalled");
    }

    /// Waits for the program to end, and for the last part of its output.
    ///
    /// # Panics
    /// When it is still running at `deadline`; the message holds everything it wrote.
    pub async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let Ok(status) = timeout(deadline, self.child.wait()).await else {
            panic!("{} still runs after {deadline:?}; it wrote:\n{}", self.name, self.output());
        };
        // The channel closes when both readers are done; a grandchild that holds the pipe open is not
        // awaited.
        let mut lines = self.lines.clone();
        let _ = timeout(Duration::from_secs(1), lines.wait_for(|_| false)).await;
        status.expect("an exit status can be read")
    }

    /// Kills it (SIGKILL) and waits until the system has removed it: its locks and ports are free then.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("our own child can be killed");
    }
}

/// Reads `output` to its end in the background; bytes that are not UTF-8 are replaced and never end the
/// reading.
fn collect(output: impl AsyncRead + Unpin + Send + 'static, lines: Arc<watch::Sender<Vec<String>>>) {
    tokio::spawn(async move {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            lines.send_modify(|lines| lines.push(text));
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command)
    }

    #[tokio::test]
    async fn waits_for_lines_of_both_outputs_and_the_exit() {
        let mut process = shell("echo one; echo two >&2; exit 3");
        assert_eq!(process.line(DEADLINE, "two").await, "two");
        assert_eq!(process.exit(DEADLINE).await.code(), Some(3));
        assert!(process.output().contains("one"));
    }

    #[tokio::test]
    async fn signals_reach_the_program() {
        let mut process = shell("trap 'echo caught; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        process.line(DEADLINE, "ready").await;
        process.signal(Signal::TERM);
        assert!(process.exit(DEADLINE).await.success());
        assert!(process.output().contains("caught"));
    }

    #[tokio::test]
    async fn dies_with_its_guard() {
        let process = shell("echo ready; exec sleep 1000");
        let id = rustix::process::Pid::from_raw(process.id().unwrap().cast_signed()).unwrap();
        drop(process);
        crate::eventually(DEADLINE, "the killed child to end", || async move {
            rustix::process::test_kill_process(id).is_err()
        })
        .await;
    }

    #[tokio::test]
    async fn kill_is_a_crash() {
        let mut process = shell("exec sleep 1000");
        process.kill().await;
        assert_eq!(process.exit(DEADLINE).await.signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    #[should_panic(expected = "it wrote:\nonly this")]
    async fn a_missing_line_shows_what_was_written() {
        shell("echo only this").line(DEADLINE, "something else").await;
    }
}
