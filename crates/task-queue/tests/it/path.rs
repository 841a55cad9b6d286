//! Tests the normal path: define, enqueue, run, get the result.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use task_queue::{ErrorKind, State, TaskContext, TaskError, store, task};

use crate::support::{Bench, SOON};

#[task]
async fn add(a: i64, b: i64) -> Result<i64, String> {
    Ok(a + b)
}

#[task(queue = "email", retries = 5, backoff = "1ms", backoff_max = "10ms", timeout = "30s", priority = 3)]
async fn flaky(
    State(tries): State<Arc<AtomicU32>>,
    context: TaskContext,
    until: u32,
) -> Result<u32, TaskError> {
    tries.fetch_add(1, Ordering::SeqCst);
    if context.attempt() < until { Err("not yet".into()) } else { Ok(context.attempt()) }
}

#[tokio::test]
async fn a_call_returns_its_result() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(add));
    let sum = add.delay(2, 3).on(&bench.client).await.unwrap();
    assert_eq!(sum.get(SOON).await.unwrap(), 5);
    let record = sum.record().await.unwrap();
    assert_eq!((record.state, record.attempts.len()), (store::State::Succeeded, 1));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn failures_are_retried_from_the_store() {
    let bench = Bench::new().await;
    let tries = Arc::new(AtomicU32::new(0));
    let worker = bench.work(|worker| worker.register(flaky).with_state(tries.clone()));
    let result = flaky.apply_async((4,)).on(&bench.client).await.unwrap();
    assert_eq!(result.get(SOON).await.unwrap(), 4);
    assert_eq!(tries.load(Ordering::SeqCst), 4);
    let record = result.record().await.unwrap();
    assert_eq!(record.errors, 3);
    assert_eq!(
        record.attempts.iter().filter(|attempt| attempt.error.as_deref() == Some("not yet")).count(),
        3
    );

    let spent = flaky.apply_async((9,)).max_retries(1).on(&bench.client).await.unwrap();
    let error = spent.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("not yet"), "{error}");
    assert_eq!(spent.record().await.unwrap().errors, 2);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_countdown_is_never_early() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(add));
    let before = jiff::Timestamp::now();
    let sum = add.apply_async((1, 1)).countdown(Duration::from_millis(150)).on(&bench.client).await.unwrap();
    sum.get(SOON).await.unwrap();
    let record = sum.record().await.unwrap();
    assert!(record.started.unwrap() >= record.due);
    assert!(record.due >= before.saturating_add(Duration::from_millis(150)).unwrap());
    worker.stop().await.unwrap();
}
