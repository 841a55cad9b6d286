//! Tests the ends of attempts: panics, time limits, permanent errors, snoozes, expiry, cancellation, queues and
//! priorities.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use task_queue::{
    ErrorKind, State, TaskClient, TaskContext, TaskError, Worker,
    store::{self, Outcome},
    task,
};
use tokio::sync::Semaphore;

use crate::support::{Bench, SOON, until};

#[task(retries = 1, backoff = "1ms")]
async fn explode() -> Result<(), String> {
    panic!("boom")
}

#[task(retries = 1, backoff = "1ms", timeout = "20ms")]
async fn hang() -> Result<(), String> {
    std::future::pending().await
}

#[task]
async fn refuse() -> Result<(), TaskError> {
    Err(TaskError::permanent("no such order"))
}

#[task(retries = 0)]
async fn doze(State(runs): State<Arc<AtomicU32>>) -> Result<u32, TaskError> {
    match runs.fetch_add(1, Ordering::SeqCst) {
        0..2 => Err(TaskError::snooze(Duration::from_millis(5))),
        runs => Ok(runs),
    }
}

/// Records its number after the gate opens.
#[task]
async fn note(
    State(gate): State<Arc<Semaphore>>,
    State(seen): State<Arc<Mutex<Vec<u32>>>>,
    number: u32,
) -> Result<(), String> {
    gate.acquire().await.map_err(|error| error.to_string())?.forget();
    seen.lock().unwrap().push(number);
    Ok(())
}

#[task]
async fn parent(context: TaskContext) -> Result<uuid::Uuid, TaskError> {
    let child = echo_parent.delay().await?;
    assert_ne!(child.id(), context.id());
    Ok(child.id())
}

#[task]
async fn echo_parent(context: TaskContext) -> Result<Option<String>, String> {
    Ok(context.header("parent_id").map(str::to_owned))
}

#[task]
async fn large() -> Result<String, String> {
    Ok("x".repeat(2000))
}

#[tokio::test]
async fn a_panic_fails_the_attempt_and_not_the_worker() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(explode).register(refuse).concurrency(1));
    let result = explode.delay().on(&bench.client).await.unwrap();
    let error = result.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("panicked: boom"), "{error}");
    let outcomes: Vec<_> =
        result.record().await.unwrap().attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::Panicked, Outcome::Panicked]);
    let next = refuse.delay().on(&bench.client).await.unwrap().get(SOON).await.unwrap_err();
    assert!(next.to_string().contains("no such order"), "{next}");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_time_limit_aborts_and_retries() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(hang).concurrency(1));
    let result = hang.delay().on(&bench.client).await.unwrap();
    let error = result.get(SOON).await.unwrap_err();
    assert!(error.to_string().contains("time limit of 20ms"), "{error}");
    let outcomes: Vec<_> =
        result.record().await.unwrap().attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::TimedOut, Outcome::TimedOut]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_permanent_error_is_dead_at_once_and_can_be_replayed() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(refuse));
    let result = refuse.delay().on(&bench.client).await.unwrap();
    assert_eq!(result.get(SOON).await.unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(result.record().await.unwrap().attempts.len(), 1);
    assert_eq!(bench.store.replay(&[result.id()]).await.unwrap(), 1);
    until("the replay has run", || async { result.record().await.unwrap().attempts.len() == 2 }).await;
    assert_eq!(bench.store.drop_dead(&[]).await.unwrap(), 1);
    assert_eq!(result.record().await.unwrap_err().kind(), ErrorKind::NotFound);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_snooze_uses_up_no_retry() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(doze).with_state(Arc::new(AtomicU32::new(0))));
    let result = doze.delay().on(&bench.client).await.unwrap();
    assert_eq!(result.get(SOON).await.unwrap(), 2);
    assert_eq!(result.record().await.unwrap().errors, 0);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn higher_priority_runs_sooner_and_queues_are_kept_apart() {
    let bench = Bench::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let seen = Arc::new(Mutex::new(Vec::<u32>::new()));
    for (number, priority) in [(1, 0), (2, 5), (3, 0), (4, 9)] {
        note.apply_async((number,)).priority(priority).on(&bench.client).await.unwrap();
    }
    let other = note.apply_async((7,)).queue("other").on(&bench.client).await.unwrap();
    let worker = bench.work(|worker| {
        worker.register(note).with_state(gate.clone()).with_state(seen.clone()).concurrency(1)
    });
    gate.add_permits(4);
    until("four have run", || async { seen.lock().unwrap().len() == 4 }).await;
    assert_eq!(*seen.lock().unwrap(), [4, 2, 1, 3]);
    assert_eq!(other.state().await.unwrap(), store::State::Queued);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn cancelled_tasks_do_not_run_and_running_ones_stop() {
    let bench = Bench::new().await;
    let (gate, seen) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::<u32>::new())));
    let worker = bench.work(|worker| {
        worker.register(note).with_state(gate.clone()).with_state(seen.clone()).concurrency(1)
    });
    let running = note.delay(1).on(&bench.client).await.unwrap();
    until("it runs", || async { running.state().await.unwrap() == store::State::Running }).await;
    let waiting = note.delay(2).on(&bench.client).await.unwrap();
    assert_eq!(waiting.cancel().await.unwrap(), store::State::Queued);
    assert_eq!(waiting.get(SOON).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(running.cancel().await.unwrap(), store::State::Running);
    assert_eq!(running.get(SOON).await.unwrap_err().kind(), ErrorKind::Cancelled);
    gate.add_permits(1);
    note.delay(3).on(&bench.client).await.unwrap().get(SOON).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [3]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_expires_unstarted_never_runs() {
    let bench = Bench::new().await;
    let late = explode.apply_async(()).expires_at(Timestamp::now()).on(&bench.client).await.unwrap();
    let worker = bench.work(|worker| worker.register(explode));
    let error = late.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
    assert!(late.record().await.unwrap().attempts.is_empty());
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_paused_queue_hands_out_nothing_until_resumed() {
    let bench = Bench::new().await;
    bench.store.pause("default", true).await.unwrap();
    let (gate, seen) = (Arc::new(Semaphore::new(9)), Arc::new(Mutex::new(Vec::<u32>::new())));
    let worker = bench.work(|worker| {
        worker.register(note).with_state(gate).with_state(seen.clone()).queues(["default", "open"])
    });
    let held = note.delay(1).on(&bench.client).await.unwrap();
    note.apply_async((2,)).queue("open").on(&bench.client).await.unwrap().get(SOON).await.unwrap();
    assert_eq!(held.state().await.unwrap(), store::State::Queued);
    bench.store.pause("default", false).await.unwrap();
    held.get(SOON).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [2, 1]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_task_enqueues_through_its_worker_and_is_named_as_parent() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(parent).register(echo_parent));
    let first = parent.delay().on(&bench.client).await.unwrap();
    let child = bench.client.result::<Option<String>>(first.get(SOON).await.unwrap());
    assert_eq!(child.get(SOON).await.unwrap(), Some(first.id().to_string()));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn shutdown_hands_back_what_does_not_finish_at_no_cost() {
    let bench = Bench::new().await;
    let (gate, seen) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::<u32>::new())));
    let worker = bench.work(|worker| {
        worker
            .register(note)
            .with_state(gate.clone())
            .with_state(seen.clone())
            .grace(Duration::from_millis(10))
    });
    let result = note.delay(1).on(&bench.client).await.unwrap();
    until("it runs", || async { result.state().await.unwrap() == store::State::Running }).await;
    worker.stop().await.unwrap();
    let record = result.record().await.unwrap();
    assert_eq!((record.state, record.errors, record.crashes), (store::State::Queued, 0, 0));
    assert!(bench.store.workers().await.unwrap().is_empty());
    gate.add_permits(1);
    let worker = bench.work(|worker| worker.register(note).with_state(gate).with_state(seen.clone()));
    result.get(SOON).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [1]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_result_above_the_cap_is_told_and_one_past_its_time_is_gone() {
    let bench = Bench::with(|options| options.max_result = 1000).await;
    let worker = bench.work(|worker| worker.register(large).register(echo_parent));
    let result = large.delay().on(&bench.client).await.unwrap();
    let error = result.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("2002 bytes"), "{error}");
    assert_eq!(result.state().await.unwrap(), store::State::Succeeded);

    let brief =
        echo_parent.apply_async(()).result_ttl(Duration::from_millis(30)).on(&bench.client).await.unwrap();
    until("the result is pruned", || async {
        brief.record().await.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    })
    .await;
    assert_eq!(result.state().await.unwrap(), store::State::Succeeded, "the other one stays");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_says_at_start_what_it_lacks() {
    let bench = Bench::new().await;
    let error = bench.work(|worker| worker.register(note)).stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConfigured);
    assert!(error.to_string().contains("task `note` needs State<"), "{error}");
    let error = bench.work(|worker: Worker| worker.register(large).register(large)).stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn many_tasks_all_run_once() {
    let bench = Bench::new().await;
    let (gate, seen) = (Arc::new(Semaphore::new(2000)), Arc::new(Mutex::new(Vec::<u32>::new())));
    let worker =
        bench.work(|worker| worker.register(note).with_state(gate).with_state(seen.clone()).concurrency(16));
    let client: &TaskClient = &bench.client;
    let calls = (0..2000).map(|number| async move { note.delay(number).on(client).await.map(|_| ()) });
    futures_util::future::try_join_all(calls).await.unwrap();
    // Each task gets its own timeout, because the time for all of them depends on the disk.
    for count in (100..=2000).step_by(100) {
        until(&format!("{count} have run"), || async { seen.lock().unwrap().len() >= count }).await;
    }
    worker.stop().await.unwrap();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
    let stats = bench.store.stats().await.unwrap();
    assert_eq!(stats[0].counts, [(store::State::Succeeded, 2000)].into());
}
