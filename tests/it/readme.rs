//! Tests that the README's commands work as written, and that its programs compile and run.

use std::time::Duration;

use backbone_tests::{Cli, Process, free_port, workspace_root};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns every command of the README's console blocks, without the prompt and the comment.
fn commands() -> Vec<String> {
    let text = std::fs::read_to_string(workspace_root().join("README.md")).unwrap();
    let mut inside = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            _ if line.starts_with("```") => inside = false,
            _ if inside => commands.extend(
                line.strip_prefix("$ ")
                    .map(|command| command.split("  #").next().unwrap_or(command).trim().to_owned()),
            ),
            _ => {}
        }
    }
    commands
}

#[test]
fn every_command_of_the_readme_is_run_by_a_test() {
    // `demo.rs` runs the demonstration; `ops/test` runs this test and the exam; benchmarks are only built.
    let elsewhere = [
        "cargo test -p backbone-tests --test conformance",
        "BACKBONE_KILLS=100 cargo test -p backbone-tests --test conformance -- sqlite::crash::consumers_killed",
        "cargo run -- demo --once",
        "ops/test",
        "cargo bench -p event-client",
    ];
    let here = [
        "cargo run -- up",
        "cargo run -- sub 'orders.>' &",
        r#"cargo run -- pub orders.placed.v1 '{"order_id": 7, "cents": 1200}'"#,
        r#"curl -d '{"service": "shop", "message": "hello"}' -H 'content-type: application/json' localhost:5000/logs"#,
    ];
    for command in commands() {
        assert!(
            elsewhere.contains(&command.as_str()) || here.contains(&command.as_str()),
            "no test runs: {command}"
        );
    }
}

#[tokio::test]
async fn the_first_minute() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let port = free_port().to_string();
    let shell = |script: String| {
        let mut command = tokio::process::Command::new("sh");
        // A separate folder, as in a fresh clone; another port, because the usual one may be in use.
        command
            .current_dir(folder.path())
            .env("LOGTHON_PORT", &port)
            .env_remove("EVENT_BUS_URL")
            .args(["-c", &script]);
        command
    };
    let program = backbone_tests::binary("backbone", "backbone");
    let ours = |command: &str| {
        let command = command.trim_end_matches(" &").replace("cargo run --", program.to_str().unwrap());
        format!("exec {}", command.replace("localhost:5000", &format!("127.0.0.1:{port}")))
    };
    let find = |part: &str| {
        commands().into_iter().find(|command| command.contains(part)).expect("the README has it")
    };

    let mut up = Process::start(shell(ours(&find("-- up"))));
    up.line(DEADLINE, "log viewer").await;
    let mut sub = Process::start(shell(ours(&find("-- sub"))));
    sub.line(DEADLINE, "receiving").await;
    let mut publish = Process::start(shell(ours(&find("-- pub"))));
    assert!(publish.exit(DEADLINE).await.success(), "{}", publish.output());
    sub.line(DEADLINE, r#"{"order_id":7,"cents":1200}"#).await;
    let mut curl = Process::start(shell(ours(&find("curl"))));
    assert!(curl.exit(DEADLINE).await.success(), "{}", curl.output());
    let server = format!("http://127.0.0.1:{port}");
    let found = cli.json(&["logs", "query", "hello", "--service", "shop", "--server", &server]).await;
    assert_eq!(found.len(), 1);
}
