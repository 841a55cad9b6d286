//! Failing disks and files: the errors are clear, and the store works again when the cause is removed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_client::log::LogRecord;
use log_aggregator::store::{LogStore as _, Query, RecordBatch, SqliteOptions, SqliteStore};
use log_aggregator::{Aggregator, Config, ErrorKind};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use crate::support::Served;

fn today(dir: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "db")).max().expect("a day's file")
}

#[tokio::test]
async fn a_full_store_answers_507_keeps_what_it_has_and_recovers() {
    let served = Served::with(|config| config.max_day_bytes = Some(512 * 1024)).await;
    let body = serde_json::json!({ "service": "fill", "message": "x".repeat(20_000) }).to_string();
    let mut taken = 0;
    let refused = loop {
        let response = served.at.post(body.clone()).await;
        if response.status() != 200 {
            break response;
        }
        taken += 1;
        assert!(taken < 100, "the bound is never met");
    };
    assert_eq!(refused.status(), 507);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.text().await.expect("text").contains("full"), "it says what is full");
    assert_eq!(served.at.entries().await.len(), taken);
    let cleared =
        served.at.client.delete(served.at.url("/logs?service=fill")).send().await.expect("an answer");
    assert_eq!(cleared.status(), 200);
    served.at.log("after", "INFO", "room again").await;
    assert_eq!(served.at.entries().await.len(), 1);
}

#[tokio::test]
async fn a_locked_file_answers_503_and_is_over_when_the_lock_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(SqliteOptions { dir: dir.path().into(), max_day_bytes: None })
        .await
        .expect("opens");
    let group = || vec![RecordBatch { delivery: None, records: vec![LogRecord::new("a", "INFO", "m")] }];
    store.append(group()).await.expect("kept");
    let url = format!("sqlite:{}", today(dir.path()).display());
    let mut other =
        <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.expect("another program");
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.expect("locks");
    let error = store.append(group()).await.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("database is locked"), "{}", error.chain());
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlocks");
    store.append(group()).await.expect("kept again");
    assert_eq!(
        store.select(Query { limit: 9, ..Query::default() }).await.expect("an answer").records.len(),
        2
    );
}

#[tokio::test]
async fn a_corrupt_day_is_set_aside_and_the_rest_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = || SqliteOptions { dir: dir.path().into(), max_day_bytes: None };
    let group =
        |text: &str| vec![RecordBatch { delivery: None, records: vec![LogRecord::new("a", "INFO", text)] }];
    let store = SqliteStore::open(options()).await.expect("opens");
    store.append(group("good")).await.expect("kept");
    store.close().await;
    drop(store);
    std::fs::write(dir.path().join("logs-2020-01-01.db"), vec![0x5a; 8192]).expect("written");
    let store = SqliteStore::open(options()).await.expect("opens all the same");
    let found = store.select(Query { limit: 9, ..Query::default() }).await.expect("an answer");
    assert_eq!(found.records.len(), 1);
    store.append(group("more")).await.expect("kept");
    let aside = dir.path().join("logs-2020-01-01.db.corrupt");
    assert_eq!(std::fs::read(aside).expect("it is still there"), vec![0x5a; 8192]);
}

/// The database or its WAL is moved: the records that are written then are refused, and a sender that retries finds a
/// new file.
#[tokio::test]
async fn a_day_that_was_moved_away_refuses_once_and_is_made_anew() {
    let record = |text: &str| vec![LogRecord::new("a", "INFO", text)];
    let group = |text: &str| vec![RecordBatch { delivery: None, records: record(text) }];
    let messages = async |store: &SqliteStore| {
        let found = store.select(Query { limit: 9, ..Query::default() }).await.expect("an answer").records;
        let mut messages: Vec<_> = found.into_iter().map(|stored| stored.record.message).collect();
        messages.sort();
        messages
    };
    for (suffix, kept) in [("", vec!["sent again"]), ("-wal", vec!["before", "lost", "sent again"])] {
        let dir = tempfile::tempdir().expect("a directory");
        let options = SqliteOptions { dir: dir.path().into(), max_day_bytes: None };
        let store = SqliteStore::open(options).await.expect("opens");
        store.append(group("before")).await.expect("kept");
        assert_eq!(messages(&store).await, ["before"]);
        let mut file = today(dir.path()).into_os_string();
        file.push(suffix);
        std::fs::rename(&file, dir.path().join("aside")).expect("moved away");
        let error = store.append(group("lost")).await.expect_err("nobody would find it");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.chain().contains("removed or moved"), "{}", error.chain());
        store.append(group("sent again")).await.expect("kept");
        assert_eq!(messages(&store).await, kept);
        let count = store.counts().await.expect("counts")["a"];
        assert_eq!(count, kept.len() as u64, "what is gone does not count");
    }
}

/// A day's file was deleted to free space.
#[tokio::test]
async fn an_old_day_that_was_deleted_is_forgotten_and_the_others_are_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = || SqliteOptions { dir: dir.path().into(), max_day_bytes: None };
    let group =
        |text: &str| vec![RecordBatch { delivery: None, records: vec![LogRecord::new("a", "INFO", text)] }];
    let store = SqliteStore::open(options()).await.expect("opens");
    store.append(group("old")).await.expect("kept");
    store.close().await;
    drop(store);
    let old = dir.path().join("logs-2020-01-01.db");
    std::fs::rename(today(dir.path()), &old).expect("it is a day of long ago");
    let store = SqliteStore::open(options()).await.expect("opens");
    store.append(group("new")).await.expect("kept");
    assert_eq!(store.select(Query { limit: 9, ..Query::default() }).await.expect("both").records.len(), 2);
    std::fs::remove_file(&old).expect("deleted");
    let left = store.select(Query { limit: 9, ..Query::default() }).await.expect("an answer").records;
    assert_eq!(left.iter().map(|stored| stored.record.message.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!(store.counts().await.expect("counts")["a"], 1);
    assert!(!old.exists(), "nothing is made in its place");
    assert_eq!(store.clear(None).await.expect("cleared"), 1);
    assert!(!old.exists(), "nothing is made in its place");
}

#[tokio::test]
async fn a_file_that_only_looks_like_a_day_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["logs-20200101.db", "logs-2020-01-01T00.db", "logs-+002020-01-01.db"] {
        std::fs::write(dir.path().join(name), "mine").expect("written");
    }
    let options = SqliteOptions { dir: dir.path().into(), max_day_bytes: None };
    let store = SqliteStore::open(options).await.expect("opens");
    store.close().await;
    for name in ["logs-20200101.db", "logs-2020-01-01T00.db", "logs-+002020-01-01.db"] {
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).expect("there"), "mine");
    }
    assert!(!dir.path().join("logs-2020-01-01.db").exists(), "no day was made of them");
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Aggregator::open(Config::new(dir.path())).await.expect("opens");
    let error = Aggregator::open(Config::new(dir.path())).await.expect_err("taken");
    assert!(error.to_string().contains("another process is using the log directory"), "{error}");
    drop(first);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").expect("written");
    let error = Aggregator::open(Config::new(file.join("logs"))).await.expect_err("no directory");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains(&file.display().to_string()), "{}", error.chain());
}

#[tokio::test]
async fn a_newer_layout_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("logs-2020-01-01.db");
    let url = format!("sqlite:{}?mode=rwc", path.display());
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.expect("a file");
    sqlx::query("PRAGMA user_version = 99").execute(&mut other).await.expect("written");
    sqlx::Connection::close(other).await.expect("closed");
    let error = SqliteStore::open(SqliteOptions { dir: dir.path().into(), max_day_bytes: None })
        .await
        .expect_err("newer");
    assert!(error.chain().contains("layout 99"), "{}", error.chain());
    assert!(path.exists());
}

/// Counts the statements on the store's table that the SQLite library logs.
struct Statements(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        if event.metadata().target().starts_with("sqlx") {
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                text.push_str(&format!("{field}={value:?} "));
            });
        }
        if text.contains("records") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Set in the process that counts statements.
const ALONE: &str = "LOG_AGGREGATOR_TEST_COUNTS_STATEMENTS";

/// Runs in a separate process: threads of the SQLite library log the statements, where only the global subscriber of
/// the process receives them, and other tests run statements that are logged.
#[test]
fn no_statement_of_the_store_is_logged() {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(count_statements());
    }
    let program = std::env::current_exe().expect("this program");
    let name = "faults::no_statement_of_the_store_is_logged";
    let mut alone = std::process::Command::new(program);
    let done = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout);
    let failed = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}\n{failed}");
}

async fn count_statements() {
    let logged = Arc::new(AtomicUsize::new(0));
    let subscriber = tracing_subscriber::registry().with(Statements(Arc::clone(&logged)));
    tracing::subscriber::set_global_default(subscriber).expect("no other test sets one");
    let dir = tempfile::tempdir().expect("a directory");
    let options = SqliteOptions { dir: dir.path().into(), max_day_bytes: None };
    let store = SqliteStore::open(options).await.expect("opens");
    let group = RecordBatch { delivery: None, records: vec![LogRecord::new("a", "INFO", "m")] };
    store.append(vec![group]).await.expect("kept");
    let found = store.select(Query { limit: 9, ..Query::default() }).await.expect("an answer");
    assert_eq!(found.records.len(), 1);
    store.clear(None).await.expect("cleared");
    store.close().await;
    assert_eq!(logged.load(Ordering::Relaxed), 0, "each would come back as a record");
    // Check the counter: another connection to the same table does log its statements.
    let url = format!("sqlite:{}", today(dir.path()).display());
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.expect("connects");
    sqlx::query("SELECT * FROM records").fetch_all(&mut other).await.expect("reads");
    sqlx::Connection::close(other).await.expect("closed");
    assert!(logged.load(Ordering::Relaxed) > 0);
}
