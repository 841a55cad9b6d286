//! Tests that one row that the store refuses is marked as dead with the reason, and that the other rows are
//! processed.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use task_queue::{ErrorKind, store::State, task};
use uuid::Uuid;

use crate::support::{Bench, SOON, until};

#[task]
async fn double(number: u32) -> Result<u32, String> {
    Ok(number * 2)
}

/// Opens another connection, which writes values that this crate never writes.
async fn direct(bench: &Bench, statements: &[&str]) {
    let url = format!("sqlite:{}", bench.path().display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    for statement in statements {
        other.execute(AssertSqlSafe(*statement)).await.unwrap();
    }
    other.close().await.unwrap();
}

async fn enqueue(bench: &Bench, number: u32) -> Uuid {
    double.delay(number).on(&bench.client).await.unwrap().id()
}

/// Runs a worker until all neighbours have succeeded and the bad task is set aside; returns the reason.
async fn set_aside(bench: &Bench, bad: Uuid, neighbours: &[Uuid]) -> String {
    let worker = bench.work(|worker| worker.register(double).concurrency(4));
    for id in neighbours {
        bench.client.result::<u32>(*id).get(SOON).await.unwrap();
    }
    let error = bench.client.result::<u32>(bad).get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    // Later tasks are not affected either.
    double.delay(9).on(&bench.client).await.unwrap().get(SOON).await.unwrap();
    worker.stop().await.unwrap();
    let record = bench.store.get(bad).await.unwrap().unwrap();
    assert_eq!(record.state, State::Dead);
    assert_eq!(bench.store.drop_dead(&[bad]).await.unwrap(), 1);
    record.error.unwrap()
}

#[tokio::test]
async fn an_end_that_cannot_be_recorded_is_set_aside_alone() {
    for (statements, reason) in [
        (
            // A trigger that the database's owner added.
            "CREATE TRIGGER rule BEFORE UPDATE ON tasks WHEN new.state = 'succeeded' AND new.args = '[1]' \
             BEGIN SELECT RAISE(ABORT, 'ones are not welcome'); END",
            "ones are not welcome",
        ),
        ("UPDATE tasks SET attempts = 'no json' WHERE args = '[1]'", "malformed JSON"),
    ] {
        let bench = Bench::new().await;
        let (first, bad, last) =
            (enqueue(&bench, 0).await, enqueue(&bench, 1).await, enqueue(&bench, 2).await);
        direct(&bench, &[statements]).await;
        let error = set_aside(&bench, bad, &[first, last]).await;
        assert!(error.contains("refused to record that it succeeded") && error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_leased_is_set_aside_alone() {
    for (column, reason) in [
        ("fence = 9223372036854775807", "fence"),
        ("max_retries = -1", "max_retries"),
        ("errors = 9999999999", "errors"),
        ("priority = 99999999999", "priority"),
        ("headers = CAST(x'ff' AS TEXT)", "headers"),
    ] {
        let bench = Bench::new().await;
        let (first, bad, last) =
            (enqueue(&bench, 0).await, enqueue(&bench, 1).await, enqueue(&bench, 2).await);
        direct(&bench, &[&format!("UPDATE tasks SET {column} WHERE args = '[1]'")]).await;
        let error = set_aside(&bench, bad, &[first, last]).await;
        assert!(error.starts_with("set aside: the store refused to") && error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn times_to_live_of_an_earlier_build_overflow_nothing() {
    let bench = Bench::new().await;
    let (expiring, brief, cancelled) =
        (enqueue(&bench, 1).await, enqueue(&bench, 2).await, enqueue(&bench, 3).await);
    let ttl = i64::MAX - 7;
    direct(
        &bench,
        &[&format!("UPDATE tasks SET result_ttl = {ttl}"), "UPDATE tasks SET expires = 1 WHERE args = '[1]'"],
    )
    .await;
    assert_eq!(bench.store.cancel(cancelled).await.unwrap(), State::Queued);
    let worker = bench.work(|worker| worker.register(double));
    assert_eq!(bench.client.result::<u32>(brief).get(SOON).await.unwrap(), 4);
    for (id, kind) in [(expiring, ErrorKind::Expired), (cancelled, ErrorKind::Cancelled)] {
        assert_eq!(bench.client.result::<u32>(id).get(SOON).await.unwrap_err().kind(), kind);
    }
    bench.store.maintain().await.unwrap();
    assert!(bench.store.get(brief).await.unwrap().is_some(), "it is kept");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_dead_workers_damaged_task_holds_up_none_of_its_others() {
    let bench = Bench::with(|options| options.lease = Duration::from_millis(400)).await;
    let (bad, good) = (enqueue(&bench, 1).await, enqueue(&bench, 2).await);
    let gone = Uuid::now_v7();
    // The state after a worker was killed: an expired lease, and the tasks that it held.
    direct(
        &bench,
        &[
            &format!(
                "INSERT INTO workers (id, info, name, started, heartbeat, lease_until) \
                 VALUES (x'{}', 'no json', 'gone', 1, 1, 2)",
                gone.simple()
            ),
            &format!(
                "UPDATE tasks SET state = 'running', started = 1, fence = 1, worker = x'{}'",
                gone.simple()
            ),
            "UPDATE tasks SET attempts = 'no json' WHERE args = '[1]'",
        ],
    )
    .await;
    let error = set_aside(&bench, bad, &[good]).await;
    assert!(error.contains("refused to hand it on"), "{error}");
    assert_eq!(bench.store.get(good).await.unwrap().unwrap().crashes, 1);
}

#[tokio::test]
async fn a_new_task_that_is_refused_fails_alone() {
    let bench = Bench::new().await;
    direct(
        &bench,
        &["CREATE TRIGGER rule BEFORE INSERT ON tasks WHEN new.args = '[1]' \
           BEGIN SELECT RAISE(ABORT, 'ones are not welcome'); END"],
    )
    .await;
    let worker = bench.work(|worker| worker.register(double));
    // All are enqueued at once, so that they share transactions.
    let calls = (0..100u32).map(|number| {
        let client = bench.client.clone();
        async move { (number, double.delay(number).on(&client).await) }
    });
    for (number, outcome) in futures_util::future::join_all(calls).await {
        match outcome {
            Ok(task) => assert_eq!(task.get(SOON).await.unwrap(), number * 2),
            Err(error) => {
                assert_eq!((number, error.kind()), (1, ErrorKind::Refused), "{error}");
                assert!(error.to_string().contains("ones are not welcome"), "{error}");
            }
        }
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_schedule_that_cannot_be_read_stops_no_other() {
    let bench = Bench::new().await;
    direct(
        &bench,
        &["INSERT INTO schedules (name, plan, timing, next) VALUES ('bad', 'no json', 'every 1s', 1)"],
    )
    .await;
    let plan = task_queue::Schedule::every("good", Duration::from_millis(100)).unwrap();
    let beat = task_queue::Beat::new(bench.store.clone()).schedule(plan.call(double.delay(1)).unwrap());
    let beat = tokio::spawn(beat.run_until(std::future::pending()));
    until("the good one has fired", || async {
        bench.store.schedules().await.unwrap().first().is_some_and(|good| good.fired > 0)
    })
    .await;
    beat.abort();
    assert!(bench.store.remove_schedule("bad").await.unwrap());
}
