//! Tests bad input: each case gets a clear error and affects no other task.

use std::time::Duration;

use sqlx::{Connection, Executor, SqliteConnection};
use task_queue::{
    ErrorKind, TaskClient,
    store::{
        self, NewTask, State, TaskQueue,
        sqlite::{SqliteOptions, SqliteStore},
    },
    task,
};

use crate::support::{Bench, SOON};

#[task]
async fn double(number: u32) -> Result<u32, String> {
    Ok(number * 2)
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_dead_and_the_worker_lives() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(double).concurrency(2));
    let bad = ["[\"two\"]", "[1,2]", "[]", "not json", "{}"].map(|args| NewTask::named("double", args));
    let sent = bench.client.send(bad.to_vec()).await.unwrap();
    for result in sent {
        let error = result.get(SOON).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
        assert!(error.to_string().contains("argument"), "{error}");
    }
    let mut named = NewTask::named("double", "[]");
    named.kwargs = Some(r#"{"number":4}"#.to_owned());
    let sent = bench.client.send(vec![named]).await.unwrap();
    assert_eq!(sent[0].get(SOON).await.unwrap(), 8);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn oversized_arguments_are_refused_at_the_door() {
    let bench = Bench::with(|options| options.max_args = 100).await;
    let error =
        bench.client.send(vec![NewTask::named("x", format!("[\"{}\"]", "y".repeat(200)))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("204 bytes and the store accepts 100"), "{error}");
}

#[tokio::test]
async fn a_call_without_a_client_says_how_to_get_one() {
    let error = double.delay(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConfigured);
    assert!(error.to_string().contains("install()"), "{error}");
}

#[tokio::test]
async fn an_unknown_id_has_no_result() {
    let bench = Bench::new().await;
    let error = bench.client.result::<u32>(uuid::Uuid::now_v7()).get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(bench.store.cancel(uuid::Uuid::now_v7()).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn files_that_are_no_task_store_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = async |name: &str| {
        TaskClient::open(&format!("sqlite:{}", folder.path().join(name).display()))
            .await
            .map(|_| ())
            .unwrap_err()
    };
    std::fs::write(
        folder.path().join("text.db"),
        "no database at all, but long enough to be read as a header".repeat(9),
    )
    .unwrap();
    let error = open("text.db").await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("text.db"), "{error}");

    let url = format!("sqlite:{}?mode=rwc", folder.path().join("other.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    other.execute("CREATE TABLE mine (x)").await.unwrap();
    let error = open("other.db").await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("another program's"), "{error}");

    assert_eq!(open("missing/tasks.db").await.kind(), ErrorKind::Unavailable);
    std::fs::create_dir(folder.path().join("folder.db")).unwrap();
    assert_eq!(open("folder.db").await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_store_of_another_version_is_refused() {
    let bench = Bench::new().await;
    let mut direct = SqliteConnection::connect(&format!("sqlite:{}", bench.path().display())).await.unwrap();
    direct.execute("PRAGMA user_version = 99").await.unwrap();
    let error = SqliteStore::open(SqliteOptions::new(bench.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version);
    assert!(error.to_string().contains("has version 99 and this build reads versions up to 2"), "{error}");
}

#[tokio::test]
async fn a_locked_store_is_an_error_and_then_works_again() {
    let bench = Bench::with(|options| options.busy_timeout = Duration::from_millis(20)).await;
    let mut other = SqliteConnection::connect(&format!("sqlite:{}", bench.path().display())).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let error = double.delay(1).on(&bench.client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("write lock"), "{error}");
    assert!(error.is_temporary());
    other.execute("ROLLBACK").await.unwrap();
    double.delay(1).on(&bench.client).await.unwrap();
}

#[tokio::test]
async fn a_worker_outlasts_a_locked_store() {
    let bench = Bench::with(|options| {
        options.busy_timeout = Duration::from_millis(20);
        options.lease = Duration::from_millis(400);
    })
    .await;
    let first = double.delay(1).on(&bench.client).await.unwrap();
    let mut other = SqliteConnection::connect(&format!("sqlite:{}", bench.path().display())).await.unwrap();
    let worker = bench.work(|worker| worker.register(double));
    first.get(SOON).await.unwrap();
    let before = bench.store.workers().await.unwrap()[0].info.id;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    // The store stays locked until the worker must treat its lease as lost.
    crate::support::until("the lease has lapsed", || async {
        bench.store.workers().await.unwrap().is_empty()
    })
    .await;
    other.execute("ROLLBACK").await.unwrap();
    let second = double.delay(2).on(&bench.client).await.unwrap();
    assert_eq!(second.get(SOON).await.unwrap(), 4);
    let workers = bench.store.workers().await.unwrap();
    assert!(workers.iter().any(|worker| worker.info.id != before), "it has registered anew");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_no_crash() {
    let bench = Bench::new().await;
    let tasks = (0..500).map(|number| NewTask::named("x", format!("[{number}]"))).collect();
    bench.store.enqueue(tasks).await.unwrap();
    let path = bench.path();
    let mut direct = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    direct.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    direct.close().await.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    let copy = path.with_file_name("copy.db");
    std::fs::write(&copy, bytes).unwrap();
    let damaged = SqliteStore::open(SqliteOptions::new(copy)).await;
    let error = match damaged {
        Err(error) => error,
        Ok(store) => store.enqueue(vec![NewTask::named("x", "[]")]).await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn states_have_names() {
    for state in State::ALL {
        assert_eq!(state.as_str().parse::<State>().unwrap(), state);
    }
    assert!("waiting".parse::<store::State>().is_err());
}
