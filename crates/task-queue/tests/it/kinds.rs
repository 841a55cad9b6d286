//! Tests that workers claim only the kinds that they have registered; tasks of other kinds wait, are listed, and
//! become dead after the configured time.

use std::time::Duration;

use serde_json::json;
use task_queue::{
    TaskClient,
    store::{
        NewTask, State, TaskControl, TaskQuery, TaskQueue,
        sqlite::{SqliteOptions, SqliteStore},
    },
    task,
};

use crate::{
    child::{self, Process},
    support::{Bench, SOON, until},
};

#[task]
async fn double(number: u32) -> Result<u32, String> {
    Ok(number * 2)
}

#[task]
async fn triple(number: u32) -> Result<u32, String> {
    Ok(number * 3)
}

#[tokio::test]
async fn a_worker_leaves_what_it_has_not_registered_for_a_worker_that_has() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(double).concurrency(2));
    let mut strange = Vec::new();
    for number in 0..3 {
        strange.push(triple.apply_async((number,)).priority(9).on(&bench.client).await.unwrap());
    }
    for number in 0..20 {
        assert_eq!(
            double.delay(number).on(&bench.client).await.unwrap().get(SOON).await.unwrap(),
            number * 2
        );
    }
    for task in &strange {
        let record = task.record().await.unwrap();
        assert_eq!(
            (record.state, record.fence, record.errors),
            (State::Queued, 0, 0),
            "it was never touched"
        );
    }
    let newcomer = bench.work(|worker| worker.register(triple));
    for (number, task) in strange.iter().enumerate() {
        assert_eq!(task.get(SOON).await.unwrap(), number as u32 * 3);
    }
    worker.stop().await.unwrap();
    newcomer.stop().await.unwrap();
}

#[tokio::test]
async fn a_kind_that_nobody_has_registered_is_dead_after_the_stated_time() {
    let bench = Bench::with(|options| options.patience = Duration::from_millis(50)).await;
    let worker = bench.work(|worker| worker.register(double));
    let unserved = double.apply_async((1,)).queue("elsewhere").on(&bench.client).await.unwrap();
    let later = triple.apply_async((1,)).countdown(Duration::from_secs(900)).on(&bench.client).await.unwrap();
    let task = triple.delay(1).on(&bench.client).await.unwrap();
    let error = task.get(SOON).await.unwrap_err().to_string();
    assert!(error.contains("no worker has registered `triple` for 50ms"), "{error}");
    assert_eq!(task.state().await.unwrap(), State::Dead);
    assert_eq!(unserved.state().await.unwrap(), State::Queued, "its kind is known");
    assert_eq!(later.state().await.unwrap(), State::Scheduled, "it is not due");
    // Replayed while a worker that registers its kind runs, the task runs.
    let newcomer = bench.work(|worker| worker.register(triple));
    until("it is registered", || async { bench.store.kinds().await.unwrap().len() == 2 }).await;
    assert_eq!(bench.store.replay(&[task.id()]).await.unwrap(), 1);
    until("it has run", || async { task.state().await.unwrap() == State::Succeeded }).await;
    worker.stop().await.unwrap();
    newcomer.stop().await.unwrap();
}

#[tokio::test]
async fn a_kind_whose_workers_are_gone_is_waited_for_as_long() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(triple));
    triple.delay(1).on(&bench.client).await.unwrap().get(SOON).await.unwrap();
    worker.stop().await.unwrap();
    let task = triple.delay(2).on(&bench.client).await.unwrap();
    bench.store.maintain().await.unwrap();
    assert_eq!(task.state().await.unwrap(), State::Queued);
    let waiting = bench.store.waiting().await.unwrap();
    assert_eq!((waiting[0].workers, waiting[0].known), (0, true));
    // The same file, opened by a store with a short patience.
    let mut options = SqliteOptions::new(bench.path());
    options.patience = Duration::from_millis(1);
    let impatient = SqliteStore::open(options).await.unwrap();
    until("nobody remembers it", || async {
        impatient.maintain().await.unwrap();
        impatient.get(task.id()).await.unwrap().unwrap().state == State::Dead
    })
    .await;
    assert!(impatient.kinds().await.unwrap().is_empty());
    assert_eq!(impatient.drop_dead(&[]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_call_by_name_has_the_options_that_its_worker_registered() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let client = TaskClient::open(&url).await.unwrap();
    let call = async |args: &[&str]| {
        let said = child::said(&url, &[&["call"], args].concat());
        assert!(said.ok, "{said:?}");
        let record = client.result::<()>(said.out.trim().parse().unwrap()).record().await.unwrap();
        (record, said.err)
    };
    let (before, warned) = call(&["mailed", "-a", "[\"a\", 1]"]).await;
    assert!(warned.contains("no worker has registered `mailed`") && warned.contains("7d"), "{warned}");
    assert_eq!((before.queue.as_str(), before.max_retries), ("default", 3));
    let waiting = child::verb(&url, &["inspect", "waiting"]).unwrap();
    assert!(waiting.contains("mailed") && waiting.contains("no worker has registered it"), "{waiting}");

    let worker = Process::start_heard(&url, &["worker", "-c", "3", "-Q", "other"]);
    until("it is there", || async { !client.store().workers().await.unwrap().is_empty() }).await;
    let waiting = child::verb(&url, &["--json", "inspect", "waiting"]).unwrap();
    let waiting: serde_json::Value = serde_json::from_str(waiting.trim()).unwrap();
    assert_eq!((&waiting["workers"], &waiting["known"]), (&json!(0), &json!(true)));
    let said = worker.said();
    for part in ["abort, journal, mailed", "queues other", "3 at a time", url.as_str()] {
        assert!(said.contains(part), "{part} in {said}");
    }

    let (record, warned) = call(&["mailed", "-k", r#"{"to": "b", "copies": 2}"#]).await;
    assert_eq!(warned, "");
    assert_eq!(
        (record.queue.as_str(), record.max_retries, record.priority, record.max_crashes),
        ("mail", 7, 4, 2)
    );
    assert!(record.expires.unwrap() > jiff::Timestamp::now() + Duration::from_secs(3600));
    let typed = child::mailed.delay("b".to_owned(), 2).on(&client).await.unwrap();
    assert!(typed.is_duplicate() && typed.id() == record.id, "the same arguments are the same unique task");
    let (record, _) =
        call(&["mailed", "-a", "[\"c\",3]", "--queue", "slow", "--max-retries", "1", "--priority", "-9"])
            .await;
    assert_eq!((record.queue.as_str(), record.max_retries, record.priority), ("slow", 1, -9));

    child::verb(&url, &["schedule", "add", "daily", "--task", "mailed", "--every", "1d", "-a", "[\"d\",4]"])
        .unwrap();
    let schedule = client.store().schedules().await.unwrap().remove(0);
    assert_eq!((schedule.queue.as_str(), schedule.max_retries, schedule.max_crashes), ("mail", 7, 2));
    assert_eq!(
        (schedule.expires, schedule.result_ttl),
        (Some(Duration::from_secs(7200)), Duration::from_secs(300))
    );
    assert!(schedule.unique.is_some());
}

#[tokio::test]
async fn a_worker_that_knows_nothing_takes_nothing() {
    let bench = Bench::new().await;
    let task = bench.client.send(vec![NewTask::named("x", "[]")]).await.unwrap().remove(0);
    let worker = bench.work(|worker| worker);
    until("it is there", || async { !bench.store.workers().await.unwrap().is_empty() }).await;
    worker.stop().await.unwrap();
    assert_eq!(task.record().await.unwrap().fence, 0);
}
