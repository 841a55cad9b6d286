//! Tests schedules: all options of their call, edits while a scheduler runs, a clock that is set back.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use task_queue::{
    Beat, ErrorKind, Schedule,
    store::{Filter, State, TaskRecord},
    task,
};

use crate::support::{Bench, until};

#[task(
    queue = "reports",
    retries = 6,
    priority = 2,
    crashes = 4,
    unique,
    expires = "90s",
    result_ttl = "10m"
)]
async fn report(day: u32) -> Result<u32, String> {
    Ok(day)
}

fn beat(bench: &Bench, schedules: Vec<Schedule>) -> tokio::task::JoinHandle<task_queue::Result<()>> {
    let beat = schedules.into_iter().fold(Beat::new(bench.store.clone()), Beat::schedule);
    tokio::spawn(beat.run_until(std::future::pending()))
}

fn often(name: &str) -> Schedule {
    Schedule::every(name, Duration::from_millis(100)).unwrap()
}

async fn tasks(bench: &Bench) -> Vec<TaskRecord> {
    bench.store.list(Filter { limit: 1_000, ..Filter::default() }).await.unwrap()
}

async fn fired(bench: &Bench) -> u64 {
    bench.store.schedules().await.unwrap().iter().map(|schedule| schedule.fired).sum()
}

#[tokio::test]
async fn a_schedule_keeps_every_option_of_its_call() {
    let bench = Bench::new().await;
    let call = report.delay(1).header("tenant", "acme");
    let beat = beat(&bench, vec![often("report").call(call).unwrap()]);
    until("it has fired", || async { fired(&bench).await > 0 }).await;
    let start = bench.store.schedules().await.unwrap()[0].start;
    // Nominal times that fall due while the first run is unfinished are skipped: the schedule advances, and runs do
    // not overlap.
    until("later times were left out", || async {
        bench.store.schedules().await.unwrap()[0].next.unwrap() > start + Duration::from_millis(500)
    })
    .await;
    let found = tasks(&bench).await;
    assert_eq!((found.len(), fired(&bench).await), (1, 1), "{found:?}");
    let run = &found[0];
    assert_eq!((run.queue.as_str(), run.max_retries, run.priority, run.max_crashes), ("reports", 6, 2, 4));
    assert_eq!((run.headers["tenant"].as_str(), run.headers["schedule"].as_str()), ("acme", "report"));
    let left = run.expires.unwrap().duration_since(run.created);
    assert!((89..=91).contains(&left.as_secs()), "{left}");
    let plan = bench.store.schedules().await.unwrap().remove(0);
    assert_eq!((plan.expires, plan.result_ttl), (Some(Duration::from_secs(90)), Duration::from_secs(600)));
    // The same declaration, built again at the next start, is the same plan.
    let again = often("report").call(report.delay(1).header("tenant", "acme")).unwrap().into_record();
    assert!(plan.same_plan(&again));
    beat.abort();
}

#[tokio::test]
async fn a_time_of_its_own_is_refused_in_a_schedule() {
    let later = Duration::from_secs(60);
    for call in [
        report.delay(1).countdown(later),
        report.delay(1).eta(Timestamp::now()),
        report.delay(1).expires_at(Timestamp::now()),
    ] {
        assert_eq!(often("report").call(call).unwrap_err().kind(), ErrorKind::Invalid);
    }
    let relative = often("report").call(report.delay(1).expires(later)).unwrap().into_record();
    assert_eq!(relative.expires, Some(later));
}

#[tokio::test]
async fn a_running_scheduler_follows_edits() {
    let bench = Bench::new().await;
    let hourly =
        |day| Schedule::every("report", Duration::from_secs(3600)).unwrap().call(report.delay(day)).unwrap();
    let beat = beat(&bench, vec![hourly(1)]);
    until("it is stored", || async { !bench.store.schedules().await.unwrap().is_empty() }).await;
    let edited = often("report").call(report.delay(2)).unwrap();
    bench.store.put_schedule(edited.into_record()).await.unwrap();
    until("the edited one has fired", || async { fired(&bench).await > 0 }).await;
    assert_eq!(tasks(&bench).await[0].args.as_str(), "[2]");
    assert!(bench.store.remove_schedule("report").await.unwrap());
    bench.store.put_schedule(often("other").call(report.delay(3)).unwrap().into_record()).await.unwrap();
    until("the added one has fired", || async { fired(&bench).await > 0 }).await;
    let queued = tasks(&bench).await.into_iter().filter(|task| task.state == State::Queued);
    let args: Vec<_> = queued.map(|task| task.args.to_string()).collect();
    assert_eq!(args, ["[3]", "[2]"]);
    beat.abort();
}

/// Changes the stored times as if they had been stored before the clock was set back by an hour.
async fn set_back(bench: &Bench, by: Duration) {
    let url = format!("sqlite:{}", bench.path().display());
    let mut direct = SqliteConnection::connect(&url).await.unwrap();
    let by = by.as_millis();
    let statements = format!(
        "UPDATE schedules SET next = next + {by}, last = last + {by}; UPDATE firings SET nominal = nominal + {by}"
    );
    direct.execute(AssertSqlSafe(statements)).await.unwrap();
}

#[tokio::test]
async fn a_clock_set_back_by_an_hour_silences_no_interval() {
    let bench = Bench::new().await;
    let hour = Duration::from_secs(3600);
    let worker = bench.work(|worker| worker.register(report));
    let first = beat(&bench, vec![often("report").call(report.delay(1)).unwrap()]);
    until("it has fired", || async { fired(&bench).await > 0 }).await;
    first.abort();
    set_back(&bench, hour).await;
    let before = fired(&bench).await;
    assert!(bench.store.schedules().await.unwrap()[0].next.unwrap() > Timestamp::now() + hour / 2);
    let second = beat(&bench, Vec::new());
    until("it fires by the new time", || async { fired(&bench).await > before + 2 }).await;
    let schedule = bench.store.schedules().await.unwrap().remove(0);
    assert!(schedule.next.unwrap() < Timestamp::now() + hour / 2, "{schedule:?}");
    second.abort();
    worker.stop().await.unwrap();
}
