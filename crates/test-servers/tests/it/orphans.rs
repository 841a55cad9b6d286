//! Tests that a killed test leaves no server running, and that the next test removes its folders.

use crate::eventually;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use test_servers::{Generation, Nats, Redis};

#[tokio::test]
async fn servers_die_with_a_process_that_is_killed() {
    let shared = Nats::shared(Generation::Old).await;
    let root = shared.folder().parent().unwrap().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_servers"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let lines: Vec<String> = output.lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    let folders = |id: u32| -> Vec<PathBuf> {
        let all = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
        all.filter(|path| path.to_string_lossy().contains(&format!("-{id}-"))).collect()
    };
    let id = child.id();
    assert_eq!(folders(id).len(), 4);
    // A process whose command line or working folder contains one of the folders is a server of the killed
    // process.
    let alive = || {
        let own: Vec<String> = folders(id).iter().map(|path| path.display().to_string()).collect();
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        all.filter(|process| {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let folder = std::fs::read_link(process.join("cwd")).unwrap_or_default();
            own.iter().any(|path| line.contains(path) || folder.starts_with(path))
        })
        .count()
    };
    assert!(alive() >= 4);

    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    eventually("all four have died with it", || alive() == 0).await;

    // A process removes old folders before it creates its first one; this process has created its first one
    // already, so another is started.
    let mut command = Command::new(env!("CARGO_BIN_EXE_servers"));
    let mut next = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(next.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("EVENT_BUS_URL="), "{line}");
    assert!(folders(id).is_empty());
    next.kill().unwrap();
    next.wait().unwrap();
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing() {
    let server = Redis::options().start().await.unwrap();
    let (folder, id) = (server.folder().to_owned(), server.id().unwrap());
    drop(server);
    assert!(!folder.exists());
    assert!(!PathBuf::from(format!("/proc/{id}")).exists());
}
