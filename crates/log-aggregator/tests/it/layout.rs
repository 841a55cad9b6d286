//! Files in the layout of earlier builds.

use std::path::Path;

use event_client::log::LogRecord;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use log_aggregator::store::{LogStore as _, Order, Query, RecordBatch, SqliteOptions, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection as _, SqliteConnection};

/// Layout 1, as the first build created it.
const LAYOUT_1: &str = "
CREATE TABLE records (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL, time INTEGER NOT NULL, arrived INTEGER NOT NULL,
  severity INTEGER NOT NULL, level TEXT NOT NULL, service TEXT NOT NULL, message TEXT NOT NULL,
  attributes TEXT NOT NULL, trace_id TEXT, span_id TEXT, request_id TEXT, correlation_id TEXT, raw TEXT
);
CREATE INDEX by_time ON records (time);
CREATE INDEX by_service ON records (service);
CREATE INDEX by_service_time ON records (service, time);
CREATE INDEX by_trace ON records (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX by_request ON records (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX by_correlation ON records (correlation_id) WHERE correlation_id IS NOT NULL;
CREATE TABLE services (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE deliveries (id BLOB PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 1;
";

/// Creates a file of layout 1 for today with two records: one of a sender whose clock is in 2099, one with a correct
/// time.
async fn earlier(dir: &Path) -> SqliteConnection {
    let now = Timestamp::now();
    let path = dir.join(format!("logs-{}.db", now.to_zoned(TimeZone::UTC).date()));
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a file");
    sqlx::raw_sql(LAYOUT_1).execute(&mut connection).await.expect("the layout");
    let arrived = i64::try_from(now.as_nanosecond()).expect("a time of this century");
    let rows = [(1, 4_070_908_800_123_456_789, "ahead"), (2, arrived - 1, "sound")];
    for (seq, time, message) in rows {
        let sql = "INSERT INTO records VALUES (?, zeroblob(16), ?, ?, 9, 'INFO', 's', ?, '{\"b\":1,\"a\":2}', NULL, NULL, NULL, NULL, NULL)";
        let insert = sqlx::query(sql).bind(seq).bind(time).bind(arrived).bind(message);
        insert.execute(&mut connection).await.expect("a row");
    }
    sqlx::raw_sql("INSERT INTO services VALUES ('s', 2)").execute(&mut connection).await.expect("a count");
    connection
}

async fn open(dir: &Path) -> SqliteStore {
    let options = SqliteOptions { dir: dir.to_owned(), max_day_bytes: None };
    SqliteStore::open(options).await.expect("the store opens")
}

async fn latest(store: &SqliteStore) -> Vec<(String, String)> {
    let found = store.select(Query { order: Order::Latest, limit: 10, ..Query::default() }).await;
    let found = found.expect("an answer").records;
    found.into_iter().map(|stored| (stored.record.message, stored.record.time.to_string())).collect()
}

async fn keep(store: &SqliteStore, message: &str) {
    let records = vec![LogRecord::new("s", "INFO", message)];
    assert_eq!(store.append(vec![RecordBatch { delivery: None, records }]).await.expect("kept").len(), 1);
}

#[tokio::test]
async fn records_of_the_first_layout_are_read_and_put_in_their_place() {
    let dir = tempfile::tempdir().expect("a directory");
    earlier(dir.path()).await.close().await.expect("closed");
    for _ in 0..2 {
        let store = open(dir.path()).await;
        let found = latest(&store).await;
        assert_eq!(found[0], ("ahead".into(), "2099-01-01T00:00:00.123456789Z".into()), "where it arrived");
        assert_eq!(found[1].0, "sound");
        store.close().await;
    }
    let store = open(dir.path()).await;
    keep(&store, "new").await;
    let messages: Vec<_> = latest(&store).await.into_iter().map(|(message, _)| message).collect();
    assert_eq!(messages, ["new", "ahead", "sound"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_changed_now_is_served_and_changed_when_it_can() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut other = earlier(dir.path()).await;
    let writing = other.begin_with("BEGIN IMMEDIATE").await.expect("it writes");
    let store = open(dir.path()).await;
    let ahead = "2099-01-01T00:00:00.123456789Z";
    assert_eq!(latest(&store).await[0], ("ahead".into(), ahead.into()));
    writing.rollback().await.expect("it ends");
    keep(&store, "new").await;
    let found = latest(&store).await;
    assert_eq!(
        found.iter().map(|(message, _)| message.as_str()).collect::<Vec<_>>(),
        ["new", "ahead", "sound"]
    );
    assert_eq!(found[1].1, ahead);
}
