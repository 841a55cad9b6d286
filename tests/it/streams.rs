//! Tests many events through standard input and output: speed, order, closed pipes and correct exit codes.

use std::process::{Output, Stdio};
use std::time::Duration;

use backbone_tests::{Cli, eventually};
use serde_json::{Value, json};
use test_servers::{Generation, Nats};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a command with this standard input.
async fn feed(cli: &Cli, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = cli.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that has ended reads no more: the exit code decides the test, not this write.
    let writing = tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let output = child.wait_with_output().await.unwrap();
    writing.await.unwrap();
    output
}

/// Runs a shell script in which `backbone` is the program.
async fn shell(cli: &Cli, script: &str) -> Output {
    let program = cli.command(&[]);
    let script = format!("backbone() {{ \"$PROGRAM\" \"$@\"; }}\n{script}");
    let mut command = tokio::process::Command::new("bash");
    command.args(["-c", &script]).env("PROGRAM", program.as_std().get_program());
    command.env("EVENT_BUS_URL", cli.url()).env("RUST_LOG", "warn").stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn numbers(count: u64) -> Vec<u8> {
    (1..=count).map(|number| format!("{{\"n\": {number}}}\n")).collect::<String>().into_bytes()
}

#[tokio::test]
async fn many_lines_are_stored_in_order_and_taken_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    cli.json(&["topology", "apply", "--group", "audit", "--filter", "n.>"]).await;
    let stored = feed(&cli, &["pub", "n.a.v1", "--json"], &numbers(5000)).await;
    assert!(stored.status.success(), "{}", text(&stored.stderr));
    let positions: Vec<u64> = text(&stored.stdout)
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["position"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!(positions.len(), 5000);
    assert!(positions.is_sorted(), "the receipts are in the order of the lines");
    let taken = cli.json(&["sub", "n.>", "--group", "audit", "--limit", "5000"]).await;
    let order = taken.iter().map(|line| line["data"]["n"].as_u64().unwrap());
    assert!(order.eq(1..=5000));
    let lag = cli.json(&["lag", "audit"]).await;
    assert_eq!((&lag[0]["waiting"], &lag[0]["in_flight"]), (&json!(0), &json!(0)), "each was acknowledged");
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_end_publishing() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let ran = shell(&cli, "seq 1 3000 | backbone pub p.a.v1 | head -1; echo ${PIPESTATUS[1]}").await;
    assert!(text(&ran.stdout).ends_with("\n0\n"), "{ran:?}");
    assert_eq!(cli.json(&["replay", "p.>"]).await.len(), 3000);
}

#[tokio::test]
async fn a_reading_command_whose_reader_left_ends_as_by_sigpipe() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    assert!(feed(&cli, &["pub", "p.a.v1"], &numbers(3000)).await.status.success());
    let commands = ["replay 'p.>'", "tail 'p.>' --since earliest", "sub 'p.>' --group g --from earliest"];
    for command in commands {
        let ran = shell(&cli, &format!("backbone {command} | head -1; echo ${{PIPESTATUS[0]}}")).await;
        assert!(text(&ran.stdout).ends_with("\n141\n"), "{command}: {ran:?}");
        assert!(!text(&ran.stderr).contains("panicked"), "{command}: {ran:?}");
    }
    // At most the lines that the pipe took before its reader left are acknowledged; all other messages still
    // wait for the group.
    let lag = &cli.json(&["lag", "g"]).await[0];
    let left = lag["waiting"].as_u64().unwrap() + lag["in_flight"].as_u64().unwrap();
    assert!((2000..=3000).contains(&left), "{lag}");
}

#[tokio::test]
async fn the_first_line_that_is_refused_ends_it_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let refusals: [(&[u8], &str); 3] = [
        (b"{\"n\": 1}\n\n{\"n\": 3}\nnonsense\n{\"n\": 5}\n", "line 4: the data is not JSON"),
        (b"{\"n\": 1}\n{\"n\": 2}\n{\"n\": \"\xff\"}\n", "line 3: the data is not UTF-8 (byte 8)"),
        (b"1\n2\n\xff\xfe\n4\n", "line 3: the data is not UTF-8 (byte 1)"),
    ];
    for (input, says) in refusals {
        let ran = feed(&cli, &["pub", "n.a.v1"], input).await;
        assert!(!ran.status.success());
        let said = text(&ran.stderr);
        assert!(said.contains(says) && said.contains("2 events were stored"), "{said}");
        assert_eq!(text(&ran.stdout).lines().count(), 2, "the receipts of the stored lines are printed");
    }
    assert_eq!(cli.json(&["replay", "n.>"]).await.len(), 6);
    // A line that the bus refuses has the same effect.
    let large = format!("1\n\"{}\"\n3\n", "x".repeat(2000));
    let small = format!("{}?max_payload=1024", cli.url());
    let ran = feed(&cli, &["--url", &small, "pub", "n.a.v1"], large.as_bytes()).await;
    assert!(!ran.status.success() && text(&ran.stderr).contains("line 2"), "{}", text(&ran.stderr));
}

#[tokio::test]
async fn a_line_is_published_while_the_next_is_still_typed() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut command = cli.command(&["pub", "n.a.v1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in ["1\n", "2\n3", "\n"] {
        input.write_all(line.as_bytes()).await.unwrap();
        let next = tokio::time::timeout(DEADLINE, told.next_line()).await;
        assert!(next.expect("a line that has ended is stored").unwrap().unwrap().starts_with("stored"));
    }
    drop(input);
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn closed_outputs_are_no_reason_to_panic() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    for (script, code) in [
        ("backbone lag nobody 2>&-", "1"),
        ("backbone lag nobody 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", "1"),
        ("backbone pub n.a.v1 1 >/dev/full", "1"),
        ("backbone pub n.a.v1 1 2>&-", "0"),
        ("backbone --url nonsense lag 2>&-", "1"),
        ("backbone sub 'n.>' --group g --from earliest --limit 1 2>&-", "0"),
    ] {
        let ran = shell(&cli, &format!("({script}); echo $?")).await;
        assert_eq!(text(&ran.stdout).lines().last(), Some(code), "{script}: {ran:?}");
        assert!(!text(&ran.stderr).contains("panicked"), "{script}: {ran:?}");
    }
}

#[tokio::test]
async fn a_replay_from_a_server_that_pauses_is_whole() {
    let server = Nats::options().generation(Generation::Old).start().await.unwrap();
    let cli = Cli::at(&server.url());
    let filler = "x".repeat(1000);
    let lines: String = (1..=5000).map(|n| format!("{{\"n\": {n}, \"filler\": \"{filler}\"}}\n")).collect();
    assert!(feed(&cli, &["pub", "n.a.v1"], lines.as_bytes()).await.status.success());

    let mut command = cli.command(&["replay", "n.>", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).await.unwrap();
    // The replay cannot end: its output has not been read yet, and 5 MB do not fit into a pipe.
    server.pause().unwrap();
    let reading = tokio::spawn(async move {
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).await.unwrap();
        rest
    });
    // Longer than the silence after which a replay checks the server's health.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.resume().unwrap();
    let rest = tokio::time::timeout(DEADLINE, reading).await.expect("it ends").unwrap();
    assert!(child.wait().await.unwrap().success());
    assert_eq!(1 + text(&rest).lines().count(), 5000);
}

#[tokio::test]
async fn a_replay_whose_server_is_gone_fails() {
    let server = Nats::options().generation(Generation::Old).start().await.unwrap();
    let cli = Cli::at(&server.url());
    let filler = "x".repeat(1000);
    let lines: String = (1..=5000).map(|n| format!("{{\"n\": {n}, \"filler\": \"{filler}\"}}\n")).collect();
    assert!(feed(&cli, &["pub", "n.a.v1"], lines.as_bytes()).await.status.success());
    let mut command = cli.command(&["replay", "n.>"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).await.unwrap();
    server.kill().await.unwrap();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).await.unwrap();
    assert!(!child.wait().await.unwrap().success(), "a part of the past is not the past");
}

#[tokio::test]
async fn the_default_bus_makes_its_folder_for_programs_as_for_commands() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut command = cli.command(&["pub", "n.a.v1", "1"]);
    command.env_remove("EVENT_BUS_URL").current_dir(folder.path());
    assert!(command.output().await.unwrap().status.success());
    let made = folder.path().join(event_client::Bus::DEFAULT_FOLDER);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    eventually(DEADLINE, "the file", async || made.join("bus.db").exists()).await;
}
