//! Tests running tasks: options at run time, extractors, retries at a time that the error sets, limits, leases, and
//! cancellation from another process.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use task_queue::{
    ErrorKind, FromTask, State, TaskContext, TaskError,
    store::{self, Outcome},
    task,
};
use tokio::sync::Notify;

use crate::{
    child::{Process, journal, read_journal},
    support::{Bench, SOON, until},
};

#[task(retries = 2, backoff = "1h")]
async fn told_when(context: TaskContext, wait_ms: u64) -> Result<u32, TaskError> {
    match context.attempt() {
        1 => Err(TaskError::retry_after(Duration::from_millis(wait_ms), "later")),
        attempt => Ok(attempt),
    }
}

#[task(retries = 0)]
async fn out_of_retries() -> Result<(), TaskError> {
    Err(TaskError::retry_after(Duration::ZERO, "spent"))
}

/// A value that a user's program takes from a run.
struct Caller(String);

impl FromTask for Caller {
    fn from_task(context: &TaskContext) -> Result<Self, TaskError> {
        let caller = context.header("caller").ok_or_else(|| TaskError::permanent("nobody called"))?;
        Ok(Self(caller.to_owned()))
    }
}

#[task(name = "greetings.greet", queue = "post", unique, expires = "1h", result_ttl = "50ms", crashes = 3)]
async fn greet(
    #[extract] caller: Caller,
    State(word): State<&'static str>,
    name: String,
) -> Result<String, TaskError> {
    Ok(format!("{word} {name}, says {}", caller.0))
}

/// Work on other threads: it continues until its stop token is cancelled.
#[derive(Clone, Default)]
struct Threads {
    running: Arc<Mutex<HashSet<u32>>>,
}

#[task(retries = 1, backoff = "1ms", timeout = "50ms")]
async fn hands_over(State(threads): State<Threads>, context: TaskContext) -> Result<(), String> {
    let (attempt, stopping) = (context.attempt(), context.stopping().clone());
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        threads.running.lock().unwrap().insert(attempt);
        runtime.block_on(stopping.cancelled());
        threads.running.lock().unwrap().remove(&attempt);
    });
    std::future::pending().await
}

#[task]
async fn long(State(gate): State<Arc<Notify>>) -> Result<u32, String> {
    gate.notified().await;
    Ok(1)
}

/// Blocks its thread, like a long computation.
#[task]
async fn blocking(millis: u64) -> Result<u32, String> {
    let (_nobody_sends, nothing) = std::sync::mpsc::channel::<()>();
    let waited = nothing.recv_timeout(Duration::from_millis(millis));
    assert_eq!(waited, Err(std::sync::mpsc::RecvTimeoutError::Timeout));
    Ok(2)
}

#[tokio::test]
async fn an_error_says_when_the_retry_comes() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(told_when).register(out_of_retries));
    let task = told_when.delay(30).on(&bench.client).await.unwrap();
    assert_eq!(task.get(SOON).await.unwrap(), 2, "not after the backoff of an hour");
    let record = task.record().await.unwrap();
    assert_eq!((record.errors, record.attempts[0].outcome), (1, Outcome::Failed));
    assert!(record.due.duration_since(record.attempts[0].ended) >= jiff::SignedDuration::from_millis(29));
    let spent = out_of_retries.delay().on(&bench.client).await.unwrap();
    assert!(spent.get(SOON).await.unwrap_err().to_string().contains("spent"), "retries count all the same");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_task_is_a_plain_function_too_and_takes_what_it_asks_for() {
    let plain = greet::call(Caller("Ada".to_owned()), State("hello"), "Bob".to_owned()).await.unwrap();
    assert_eq!(plain, "hello Bob, says Ada");

    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(greet).with_state("hello"));
    let anonymous = greet.delay("Bob".to_owned()).on(&bench.client).await.unwrap();
    let error = anonymous.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("nobody called"), "{error}");
    let call = greet.apply_async(("Bob".to_owned(),)).header("caller", "Ada").result_ttl(SOON);
    assert_eq!(call.on(&bench.client).await.unwrap().get(SOON).await.unwrap(), plain);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn the_options_of_a_task_hold_for_its_calls() {
    let bench = Bench::new().await;
    let call = || greet.apply_async(("Bob".to_owned(),)).header("caller", "Ada").on(&bench.client);
    let first = call().await.unwrap();
    assert!(call().await.unwrap().is_duplicate(), "unique by its arguments");
    let other =
        greet.apply_async(("Eve".to_owned(),)).header("caller", "Ada").on(&bench.client).await.unwrap();
    assert!(!other.is_duplicate());
    let record = first.record().await.unwrap();
    assert_eq!(
        (record.name.as_str(), record.queue.as_str(), record.max_crashes),
        ("greetings.greet", "post", 3)
    );
    let left = record.expires.unwrap().duration_since(record.created);
    assert!((3_500..=3_600).contains(&left.as_secs()), "{left}");
    let worker = bench.work(|worker| worker.register(greet).with_state("hello"));
    until("its record is past its time to live", || async {
        first.record().await.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    })
    .await;
    until("its key is free", || async { !call().await.unwrap().is_duplicate() }).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_stops_what_was_handed_to_other_threads() {
    let bench = Bench::new().await;
    let threads = Threads::default();
    let worker = bench.work(|worker| worker.register(hands_over).with_state(threads.clone()));
    let task = hands_over.delay().on(&bench.client).await.unwrap();
    let record = task.wait(SOON).await.unwrap();
    let outcomes: Vec<_> = record.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::TimedOut, Outcome::TimedOut]);
    until("no thread goes on", || async { threads.running.lock().unwrap().is_empty() }).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_longer_than_its_lease_runs_once() {
    let bench = Bench::with(|options| options.lease = Duration::from_secs(2)).await;
    let gate = Arc::new(Notify::new());
    let worker =
        bench.work(|worker| worker.register(long).register(blocking).with_state(gate.clone()).concurrency(2));
    let waiting = long.delay().on(&bench.client).await.unwrap();
    let busy = blocking.delay(4_500).on(&bench.client).await.unwrap();
    assert_eq!(busy.get(SOON).await.unwrap(), 2);
    gate.notify_one();
    assert_eq!(waiting.get(SOON).await.unwrap(), 1);
    for record in [waiting.record().await.unwrap(), busy.record().await.unwrap()] {
        assert_eq!((record.fence, record.crashes, record.attempts.len()), (1, 0, 1), "{record:?}");
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_task_that_runs_in_another_process_can_be_cancelled() {
    let bench = Bench::new().await;
    let url = format!("sqlite:{}", bench.path().display());
    let path = bench.folder.path().join("journal");
    let worker = Process::start(&url, &["worker", "-c", "2"]);
    let endless = journal.delay(path.clone(), 3_600_000).on(&bench.client).await.unwrap();
    until("it runs over there", || async { read_journal(&path).len() == 1 }).await;
    assert_eq!(endless.cancel().await.unwrap(), store::State::Running);
    assert_eq!(endless.get(SOON).await.unwrap_err().kind(), ErrorKind::Cancelled);
    let next = journal.delay(path.clone(), 1).on(&bench.client).await.unwrap();
    next.get(SOON).await.unwrap();
    let ended =
        read_journal(&path).into_iter().filter(|note| !note.start).map(|note| note.id).collect::<Vec<_>>();
    assert_eq!(ended, [next.id().to_string()], "the cancelled one never came to its end");
    worker.terminate();
}
