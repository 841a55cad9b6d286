//! Tests that this build opens a store with the first version of the tables, keeps its data and continues to work.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use task_queue::{
    TaskClient, TaskContext, Worker,
    store::{self, Filter, Outcome},
    task,
};
use uuid::Uuid;

use crate::support::{SOON, until};

/// The tables as the first version created them.
const FIRST: &str = "
PRAGMA journal_mode = WAL;
CREATE TABLE tasks (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL, queue TEXT NOT NULL, state TEXT NOT NULL,
  args TEXT NOT NULL, kwargs TEXT, priority INTEGER NOT NULL, created INTEGER NOT NULL, due INTEGER NOT NULL,
  expires INTEGER, errors INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
  max_retries INTEGER NOT NULL, max_crashes INTEGER NOT NULL, unique_key TEXT, headers TEXT NOT NULL,
  result_ttl INTEGER NOT NULL, worker BLOB, fence INTEGER NOT NULL DEFAULT 0, started INTEGER, finished INTEGER,
  keep_until INTEGER, cancel INTEGER NOT NULL DEFAULT 0, result TEXT, error TEXT, attempts TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX tasks_queued ON tasks (queue, priority DESC, due, seq) WHERE state = 'queued';
CREATE INDEX tasks_scheduled ON tasks (due) WHERE state = 'scheduled';
CREATE INDEX tasks_running ON tasks (worker) WHERE state = 'running';
CREATE INDEX tasks_dead ON tasks (seq) WHERE state = 'dead';
CREATE INDEX tasks_expiring ON tasks (expires) WHERE expires IS NOT NULL AND state IN ('queued', 'scheduled');
CREATE INDEX tasks_keep ON tasks (keep_until) WHERE keep_until IS NOT NULL;
CREATE UNIQUE INDEX tasks_unique ON tasks (name, unique_key)
  WHERE unique_key IS NOT NULL AND state IN ('queued', 'scheduled', 'running');
CREATE TABLE workers (id BLOB PRIMARY KEY, info TEXT NOT NULL, name TEXT NOT NULL, started INTEGER NOT NULL,
  heartbeat INTEGER NOT NULL, lease_until INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE paused (queue TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE schedules (name TEXT PRIMARY KEY, plan TEXT NOT NULL, timing TEXT NOT NULL, next INTEGER, last INTEGER,
  fired INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE firings (schedule TEXT NOT NULL, nominal INTEGER NOT NULL, task BLOB NOT NULL,
  PRIMARY KEY (schedule, nominal)) STRICT, WITHOUT ROWID;
CREATE INDEX firings_nominal ON firings (nominal);
PRAGMA application_id = 1111651441;
PRAGMA user_version = 1;
";

/// A schedule as the first version wrote it.
const PLAN: &str = r#"{"name":"nightly","timing":"every 1h","tz":"UTC","missed":"once","task":"again","queue":"default",
"args":[7],"kwargs":null,"priority":0,"max_retries":3,"start":"2026-01-01T00:00:00Z","next":null,"last":null,"fired":0}"#;

#[task(backoff = "1ms")]
async fn again(context: TaskContext, number: u32) -> Result<u32, String> {
    if context.attempt() < 3 { Err("not yet".to_owned()) } else { Ok(number) }
}

fn insert(id: Uuid, more: &[(&str, String)]) -> String {
    let mut columns = vec![
        ("id", format!("x'{}'", id.simple())),
        ("name", "'again'".to_owned()),
        ("queue", "'default'".to_owned()),
        ("state", "'queued'".to_owned()),
        ("args", "'[5]'".to_owned()),
        ("priority", "0".to_owned()),
        ("created", "1".to_owned()),
        ("due", "1".to_owned()),
        ("max_retries", "3".to_owned()),
        ("max_crashes", "5".to_owned()),
        ("headers", "'{}'".to_owned()),
        ("result_ttl", "86400000".to_owned()),
    ];
    columns.retain(|(column, _)| !more.iter().any(|(other, _)| other == column));
    columns.extend(more.iter().cloned());
    let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
    let values: Vec<_> = columns.iter().map(|(_, value)| value.as_str()).collect();
    format!("INSERT INTO tasks ({}) VALUES ({})", names.join(", "), values.join(", "))
}

#[tokio::test]
async fn a_store_of_the_first_version_opens_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.db");
    let mut first = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap();
    first.execute(AssertSqlSafe(FIRST)).await.unwrap();
    let text = |text: &str| format!("'{text}'");
    let [waiting, snoozed, held, endless, dead, done] = std::array::from_fn(|_| Uuid::now_v7());
    let attempt = r#"{"fence":1,"worker":"w","started":"2026-01-01T00:00:00Z","ended":"2026-01-01T00:00:01Z","outcome":"snoozed","error":"snoozed"}"#;
    let many = format!("'[{}]'", vec![attempt; 4_600].join(","));
    let gone = format!("x'{}'", Uuid::now_v7().simple());
    for statement in [
        insert(waiting, &[]),
        insert(
            snoozed,
            &[
                ("state", text("scheduled")),
                ("started", "1".into()),
                ("expires", "2".into()),
                ("attempts", many),
            ],
        ),
        insert(
            held,
            &[
                ("state", text("running")),
                ("worker", gone.clone()),
                ("started", "1".into()),
                ("fence", "1".into()),
            ],
        ),
        insert(Uuid::now_v7(), &[("name", text("other"))]),
        insert(endless, &[("result_ttl", (i64::MAX / 2).to_string())]),
        insert(dead, &[("state", text("dead")), ("finished", "1".into()), ("error", text("old"))]),
        insert(
            done,
            &[
                ("state", text("succeeded")),
                ("finished", "1".into()),
                ("result", text("18446744073709551616")),
            ],
        ),
        format!("INSERT INTO workers VALUES ({gone}, '{{\"tasks\":[\"again\"]}}', 'gone', 1, 1, 2)"),
        format!(
            "INSERT INTO schedules (name, plan, timing, next) VALUES ('nightly', '{PLAN}', 'every 1h', 1)"
        ),
        "INSERT INTO paused VALUES ('closed')".to_owned(),
    ] {
        first.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    // The earlier build still has the store open while the later one opens it.
    let client = TaskClient::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let store = client.store().clone();
    let now = jiff::Timestamp::now().as_millisecond().to_string();
    let other = insert(Uuid::now_v7(), &[("name", text("other")), ("due", now)]);
    first.execute(AssertSqlSafe(other)).await.unwrap();

    assert_eq!(client.result::<u128>(done).get(SOON).await.unwrap(), 18_446_744_073_709_551_616);
    let schedule = store.schedules().await.unwrap().remove(0);
    assert_eq!((schedule.max_crashes, &schedule.unique, schedule.expires), (5, &None, None));
    assert_eq!(schedule.result_ttl, Duration::from_secs(86_400));
    assert_eq!(schedule.args.as_str(), "[7]");

    let worker = tokio::spawn(Worker::new(store.clone()).register(again).run_until(std::future::pending()));
    for id in [waiting, snoozed, held, endless] {
        assert_eq!(client.result::<u32>(id).get(SOON).await.unwrap(), 5, "{id}");
    }
    let crashed = store.get(held).await.unwrap().unwrap();
    assert_eq!(crashed.attempts[0].outcome, Outcome::Crashed);
    let record = store.get(snoozed).await.unwrap().unwrap();
    assert_eq!((record.attempts.len(), record.attempts_dropped), (50, 4_600 + 3 - 50));
    assert_eq!(store.replay(&[dead]).await.unwrap(), 1);
    until("the dead one has run", || async {
        store.get(dead).await.unwrap().unwrap().state == store::State::Succeeded
    })
    .await;
    let stats = store.stats().await.unwrap();
    assert!(stats.iter().any(|queue| queue.queue == "closed" && queue.paused));
    let left = store.list(Filter { name: Some("other".to_owned()), ..Filter::default() }).await.unwrap();
    // A worker that registers the kind has a week from the upgrade, however long the tasks have waited before.
    assert_eq!(left.iter().map(|task| task.state).collect::<Vec<_>>(), [store::State::Queued; 2]);
    worker.abort();
    // Opened again, the store has this version.
    TaskClient::open(&format!("sqlite:{}", path.display())).await.unwrap();
}
