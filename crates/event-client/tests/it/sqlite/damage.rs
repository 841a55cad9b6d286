//! Tests files that are full, foreign, locked or damaged.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let (_folder, path) = file();
    drop(open(&path).await.subscribe(group("work", 1)).await.unwrap());
    // A limit on the file size acts as a full disk: the shell sets it and ignores its signal.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["sqlite::as_a_child", "--exact", "--ignored", "--nocapture"])
        .env("SQLITE_CHILD", "fill")
        .env("SQLITE_FILE", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = lines.filter_map(|line| line.split_once('>').map(|(_, said)| said.to_owned()));
    assert_eq!(said.next().as_deref(), Some("full"));
    let raised =
        Command::new("prlimit").args(["--fsize=unlimited", "--pid", &child.id().to_string()]).status();
    assert!(raised.unwrap().success());
    let stored: u64 = said.next().unwrap().split_once(' ').unwrap().0.parse().unwrap();
    child.wait().unwrap();
    let bus = open(&path).await;
    // A refused message may still have been stored: the error came from a commit that failed.
    assert!(status(&bus, "work").await.waiting >= stored, "{stored} were confirmed");
    assert!(stored > 10);
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_ours_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(
        path("text"),
        "this is no database, and longer than any header of one would be\n".repeat(40),
    )
    .unwrap();
    let bus = open(&path("newer")).await;
    bus.close().await.unwrap();
    let run = |path: PathBuf, sql: &'static str| async move {
        use sqlx::{ConnectOptions, Connection};
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    run(path("newer"), "PRAGMA user_version = 99").await;
    run(path("foreign"), "CREATE TABLE theirs (x)").await;
    for (name, kind, hint) in [
        ("text", ErrorKind::Corrupt, "not an SQLite database"),
        ("newer", ErrorKind::Corrupt, "newer version"),
        ("foreign", ErrorKind::Corrupt, "another program"),
        ("missing/bus.db", ErrorKind::NotFound, "create it first"),
        ("text/bus.db", ErrorKind::Config, "not a folder"),
        ("", ErrorKind::Config, "folder"),
    ] {
        let before = std::fs::read(path(name)).ok();
        let error = open_with(&path(name), "").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(hint), "{name}: {error}");
        assert_eq!(std::fs::read(path(name)).ok(), before, "{name} was changed");
    }
    // Damage in the middle of one of this library's files.
    let bus = open(&path("damaged")).await;
    for n in 0..200 {
        drop(bus.publish(message("orders.placed.v1", n.to_string().repeat(500))));
    }
    bus.close().await.unwrap();
    let mut bytes = std::fs::read(path("damaged")).unwrap();
    let end = bytes.len();
    bytes[4096..end].fill(0x5a);
    std::fs::write(path("damaged"), bytes).unwrap();
    let error = match open_with(&path("damaged"), "").await {
        Err(error) => error,
        Ok(bus) => {
            let mut spec = group("work", 1);
            spec.start = Start::Earliest;
            bus.subscribe(spec).await.unwrap_err()
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_file_is_waited_for_then_refused_and_works_again() {
    use sqlx::{ConnectOptions, Connection};
    let (_folder, path) = file();
    let bus = open_with(&path, "?busy_timeout=100ms").await.unwrap();
    let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = bus.publish(message("orders.placed.v1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_temporary() && error.to_string().contains("locked"), "{error}");
    let waiting =
        open_with(&path, "?busy_timeout=100ms").await.unwrap().publish(message("orders.placed.v1", 2));
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let _ = waiting.await;
    bus.publish(message("orders.placed.v1", 3)).await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_that_cannot_be_kept_are_refused() {
    let (_folder, path) = file();
    let bus = open_with(&path, "?synchronous=normal&max_payload=2k").await.unwrap();
    assert_eq!(bus.capabilities().max_durability, Durability::PageCache);
    let mut sure = message("orders.placed.v1", "");
    sure.durability = Durability::Fsync;
    assert_eq!(bus.publish(sure).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let error = bus.publish(message("orders.placed.v1", "x".repeat(3000))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("2048") && error.to_string().contains("3026"), "{error}");
    // A second handle may promise another durability, but may not change how the file is stored.
    let other = open(&path).await;
    let mut sure = message("orders.placed.v1", "");
    sure.durability = Durability::Fsync;
    other.publish(sure).await.unwrap();
    assert_eq!(open_with(&path, "?retention_age=1h").await.unwrap_err().kind(), ErrorKind::Config);
    bus.close().await.unwrap();
    other.publish(message("orders.placed.v1", "still open")).await.unwrap();
    other.close().await.unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
