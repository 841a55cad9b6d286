//! Tests that hot statements use partial indexes which contain only the rows they need, so that they cost the same
//! with a million tasks as with ten.

use super::{SqliteOptions, SqliteStore, query::DEPTHS};

async fn plan(store: &SqliteStore, statement: &str) -> Vec<String> {
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
    let plan = sqlx::query_as::<_, (i64, i64, i64, String)>(explain).fetch_all(&store.readers).await.unwrap();
    plan.into_iter().map(|step| step.3).collect()
}

#[tokio::test]
async fn hot_statements_use_their_own_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(SqliteOptions::new(folder.path().join("tasks.db"))).await.unwrap();
    for (statement, index) in [
        (
            "SELECT min(expires) FROM tasks WHERE expires IS NOT NULL AND started IS NULL \
             AND state IN ('queued', 'scheduled')",
            "tasks_expiring",
        ),
        ("SELECT min(due) FROM tasks WHERE state = 'scheduled'", "tasks_scheduled"),
        (
            "SELECT seq FROM tasks WHERE state = 'scheduled' AND due <= 1 ORDER BY due LIMIT 1",
            "tasks_scheduled",
        ),
        ("SELECT 1 FROM tasks WHERE state = 'queued'", "tasks_queued"),
        (
            "SELECT seq, priority, due FROM tasks WHERE state = 'queued' AND queue = 'a' AND name = 'b' \
             ORDER BY priority DESC, due, seq LIMIT 1",
            "tasks_queued (queue=? AND name=?)",
        ),
        (
            "SELECT queue, name, count(*), min(due) FROM tasks WHERE state = 'queued' GROUP BY queue, name",
            "COVERING INDEX tasks_queued",
        ),
        ("SELECT id FROM tasks WHERE state = 'running' AND worker = x'00' AND cancel", "tasks_running"),
        (
            "SELECT seq FROM tasks WHERE keep_until IS NOT NULL AND keep_until <= 1 ORDER BY keep_until",
            "tasks_keep",
        ),
        (
            "SELECT id FROM tasks WHERE name = 'a' AND unique_key = 'b' \
             AND state IN ('queued', 'scheduled', 'running')",
            "tasks_unique",
        ),
    ] {
        let plan = plan(&store, statement).await;
        assert!(plan.iter().any(|step| step.contains(index)), "{statement}: {plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{statement} sorts: {plan:?}");
    }
}

#[tokio::test]
async fn the_count_of_every_minute_reads_no_finished_task() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(SqliteOptions::new(folder.path().join("tasks.db"))).await.unwrap();
    let plan = plan(&store, DEPTHS).await;
    let looks: Vec<_> = plan.iter().filter(|step| step.contains("tasks")).collect();
    assert_eq!(looks.len(), 4, "{plan:?}");
    for (look, index) in looks.iter().zip(["tasks_queued", "tasks_scheduled", "tasks_running", "tasks_dead"])
    {
        assert!(look.contains(index), "{plan:?}");
    }
}
