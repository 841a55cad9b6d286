//! Tests that files of a process are readable by its own user only, whatever the umask, and whatever
//! permissions an earlier version set.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backbone_tests::{Cli, Process, Signal};

const DEADLINE: Duration = Duration::from_secs(60);

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    found
        .flat_map(
            |path| if path.is_dir() { [vec![path.clone()], entries(&path)].concat() } else { vec![path] },
        )
        .collect()
}

/// Returns everything below `data` that another user could read or enter.
fn open_to_others(data: &Path) -> Vec<String> {
    let paths = [vec![data.to_owned()], entries(data)].concat();
    let modes = paths.iter().map(|path| (path, path.metadata().unwrap().permissions().mode() & 0o777));
    modes
        .filter(|(_, mode)| mode & 0o077 != 0)
        .map(|(path, mode)| format!("{} {mode:o}", path.display()))
        .collect()
}

async fn up(cli: &Cli, data: &Path) -> Process {
    // The usual umask: files without explicit permissions would be readable by all users.
    let mut command = tokio::process::Command::new("sh");
    let program = cli.command(&[]);
    command.args(["-c", "umask 022; exec \"$0\" \"$@\""]).arg(program.as_std().get_program());
    command.args(["up", "--port", "0", "--data-dir"]).arg(data);
    command.env_remove("EVENT_BUS_URL");
    let mut process = Process::start(command);
    let viewer = process.line(DEADLINE, "log viewer").await;
    let url = viewer.split_whitespace().last().unwrap().to_owned();
    let post = reqwest::Client::new().post(format!("{url}logs"));
    let body = r#"{"service": "shop", "message": "a secret"}"#;
    let answer = post.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    process
}

#[tokio::test]
async fn everything_that_up_writes_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("new/data");
    let cli = Cli::new(folder.path());
    let mut first = up(&cli, &data).await;
    let kinds = ["bus.db", "bus-tasks.db", "bus-tasks.db-wal", "logs/lock"];
    kinds
        .iter()
        .for_each(|name| assert!(data.join(name).exists(), "{name} is missing from {:?}", entries(&data)));
    assert!(entries(&data).iter().any(|path| path.extension().is_some_and(|end| end == "db-wal")));
    assert_eq!(open_to_others(&data), [""; 0]);
    first.kill().await;

    // Sets the permissions that an earlier version used.
    for path in [vec![data.clone()], entries(&data)].concat() {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut second = up(&cli, &data).await;
    let still_open: Vec<_> =
        open_to_others(&data).into_iter().filter(|path| !path.contains("bus.db")).collect();
    assert_eq!(still_open, [""; 0]);
    second.signal(Signal::TERM);
    assert!(second.exit(DEADLINE).await.success());
}

#[tokio::test]
async fn a_folder_that_somebody_else_prepared_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let peers = folder.path().join("bus.db-peers");
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &peers).unwrap();
    let refused = cli.run(&["pub", "n.a.v1", "1"]).await;
    assert!(
        !refused.ok && refused.err.contains("bus.db-peers") && refused.err.contains("remove it"),
        "{refused:?}"
    );
    assert_eq!(entries(elsewhere.path()).len(), 0);

    std::fs::remove_file(&peers).unwrap();
    std::fs::create_dir(&peers).unwrap();
    std::fs::set_permissions(&peers, std::fs::Permissions::from_mode(0o777)).unwrap();
    let refused = cli.run(&["pub", "n.a.v1", "1"]).await;
    assert!(!refused.ok && refused.err.contains("written by other users"), "{refused:?}");
    std::fs::remove_dir(&peers).unwrap();
    assert!(cli.run(&["pub", "n.a.v1", "1"]).await.ok);

    // A symbolic link in the folder of process names is not followed.
    let precious = folder.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    std::fs::create_dir_all(&peers).unwrap();
    std::fs::set_permissions(&peers, std::fs::Permissions::from_mode(0o700)).unwrap();
    let locked = std::fs::File::open(&precious).unwrap();
    locked.lock().unwrap();
    std::os::unix::fs::symlink(&precious, peers.join("1-somebody")).unwrap();
    assert!(cli.run(&["pub", "n.a.v1", "2"]).await.ok);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
}
