//! The arguments and variables of the program that runs the log aggregator alone.

use crate::support::Process;

#[tokio::test]
async fn more_than_loopback_is_refused_until_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let command = || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_log-aggregator"));
        command
            .arg(dir.path())
            .env("LOGTHON_HOST", "0.0.0.0")
            .env("LOGTHON_PORT", "0")
            .env_remove("EVENT_BUS_URL");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        command
    };
    let refused = command().output().await.expect("it ends");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("--allow-unauthenticated"), "{said}");
    for by_flag in [true, false] {
        let mut asked = command();
        if by_flag {
            asked.arg("--allow-unauthenticated")
        } else {
            asked.env("LOGTHON_ALLOW_UNAUTHENTICATED", "true")
        };
        let mut child = asked.spawn().expect("it starts");
        let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line).await.expect("a line");
        assert!(line.starts_with("listening on http://0.0.0.0:"), "{line}");
        child.kill().await.expect("ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_bus_url_means_no_bus() {
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::consuming(dir.path(), "");
    process.at.log("a", "INFO", "kept").await;
    assert!(process.terminate(), "it ends with success");
}
