//! Tests settlements: resolutions, fences, attempts.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::store::{NewTask, Outcome, Resolution, State};

use super::{Store, again, claim, claim_one, end, settle, succeeded, task, worker};

pub(crate) async fn every_verdict_has_its_state(store: Store) {
    store.enqueue((0..6).map(|_| task("a")).collect()).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 6).await;
    let later = Timestamp::now() + Duration::from_secs(100);
    let verdicts = [
        (Resolution::Succeed(Ok(r#"{"x":1}"#.to_owned())), State::Succeeded, 0),
        (Resolution::Retry { due: later, counts: true }, State::Scheduled, 1),
        (Resolution::Retry { due: later, counts: false }, State::Scheduled, 0),
        (Resolution::DeadLetter, State::Dead, 1),
        (Resolution::Cancel, State::Cancelled, 0),
        (Resolution::Release, State::Queued, 0),
    ];
    let ends = leases
        .iter()
        .zip(&verdicts)
        .map(|(lease, (resolution, ..))| end(lease, w, resolution.clone()))
        .collect();
    assert_eq!(settle(&store, ends).await, [true; 6]);
    for (lease, (resolution, state, errors)) in leases.iter().zip(&verdicts) {
        let record = store.get(lease.id).await.unwrap().unwrap();
        assert_eq!((record.state, record.errors), (*state, *errors), "{resolution:?}");
        assert_eq!(record.finished.is_some(), state.is_final(), "{resolution:?}");
        assert_eq!(record.attempts.is_empty(), matches!(resolution, Resolution::Release));
        let result = (*state == State::Succeeded).then(|| serde_json::json!({ "x": 1 }));
        assert_eq!(record.result.map(|json| json.value()), result);
        if *state == State::Scheduled {
            assert!(record.due >= later);
            assert_eq!(record.error.as_deref(), Some("went wrong"));
        }
    }
}

pub(crate) async fn a_stale_fence_is_refused(store: Store) {
    store.enqueue(vec![task("a")]).await.unwrap();
    let w = worker(&store).await;
    let first = claim_one(&store, w).await;
    assert_eq!(settle(&store, vec![end(&first, w, Resolution::Release)]).await, [true]);
    let second = claim_one(&store, w).await;
    assert_eq!(second.fence, first.fence + 1);
    assert_eq!(settle(&store, vec![end(&first, w, succeeded())]).await, [false], "same worker, older lease");
    assert_eq!(store.get(first.id).await.unwrap().unwrap().state, State::Running);
    assert_eq!(settle(&store, vec![end(&second, w, succeeded())]).await, [true]);
}

pub(crate) async fn another_worker_is_refused(store: Store) {
    store.enqueue(vec![task("a"), task("a")]).await.unwrap();
    let (mine, other) = (worker(&store).await, worker(&store).await);
    let lease = claim(&store, mine, 1).await.pop().unwrap();
    let own = claim(&store, other, 1).await.pop().unwrap();
    let ends = vec![end(&lease, other, succeeded()), end(&own, other, succeeded())];
    assert_eq!(settle(&store, ends).await, [false, true], "one refusal does not spoil the batch");
}

pub(crate) async fn settled_twice_counts_once(store: Store) {
    store.enqueue(vec![task("a")]).await.unwrap();
    let w = worker(&store).await;
    let lease = claim_one(&store, w).await;
    assert_eq!(settle(&store, vec![end(&lease, w, again())]).await, [true]);
    assert_eq!(settle(&store, vec![end(&lease, w, again())]).await, [false]);
    assert_eq!(store.get(lease.id).await.unwrap().unwrap().errors, 1);
}

pub(crate) async fn attempts_are_kept_in_order(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let w = worker(&store).await;
    for _ in 0..3 {
        let lease = claim_one(&store, w).await;
        settle(&store, vec![end(&lease, w, again())]).await;
    }
    let lease = claim_one(&store, w).await;
    assert_eq!(lease.errors, 3);
    settle(&store, vec![end(&lease, w, succeeded())]).await;
    let record = store.get(id).await.unwrap().unwrap();
    let seen: Vec<_> = record.attempts.iter().map(|attempt| (attempt.fence, attempt.outcome)).collect();
    let failed = Outcome::Failed;
    assert_eq!(seen, [(1, failed), (2, failed), (3, failed), (4, Outcome::Succeeded)]);
    assert!(record.attempts.iter().all(|attempt| attempt.ended >= attempt.started && attempt.worker == "w"));
}

pub(crate) async fn snoozes_without_end_keep_the_newest_attempts(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let w = worker(&store).await;
    let mut last = 0;
    for _ in 0..230 {
        let lease = claim_one(&store, w).await;
        last = lease.fence;
        settle(&store, vec![end(&lease, w, Resolution::Retry { due: Timestamp::now(), counts: false })])
            .await;
    }
    let record = store.get(id).await.unwrap().unwrap();
    assert_eq!((record.attempts.len(), record.attempts_dropped, record.errors), (50, 180, 0));
    let fences: Vec<_> = record.attempts.iter().map(|attempt| attempt.fence).collect();
    assert_eq!(fences, (last - 49..=last).collect::<Vec<_>>());
}

pub(crate) async fn long_errors_are_cut_with_a_note(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let w = worker(&store).await;
    let lease = claim_one(&store, w).await;
    let mut failed = end(&lease, w, again());
    failed.attempt.as_mut().unwrap().error = Some("ä".repeat(500_000));
    assert_eq!(settle(&store, vec![failed]).await, [true]);
    let record = store.get(id).await.unwrap().unwrap();
    for error in [record.error.unwrap(), record.attempts[0].error.clone().unwrap()] {
        assert!(error.len() < 5_000 && error.starts_with("ää"), "{} bytes", error.len());
        assert!(error.ends_with("(995904 bytes more were not kept)"), "{}", &error[error.len() - 60..]);
    }
}

pub(crate) async fn the_longest_times_to_live_settle(store: Store) {
    let ttl = |result_ttl| NewTask { result_ttl, ..task("a") };
    let past = Some(Timestamp::from_millisecond(1).unwrap());
    let expired = NewTask { expires: past, ..ttl(Duration::MAX) };
    let kept =
        [Duration::MAX, Duration::from_millis(i64::MAX as u64), Duration::from_millis(i64::MAX as u64 - 5)];
    store.enqueue(kept.into_iter().map(ttl).chain([expired.clone()]).collect()).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 9).await;
    assert_eq!(leases.len(), 3);
    assert_eq!(store.get(expired.id).await.unwrap().unwrap().state, State::Expired);
    let verdicts = [succeeded(), Resolution::Cancel, Resolution::DeadLetter];
    let ends = leases.iter().zip(verdicts).map(|(lease, resolution)| end(lease, w, resolution)).collect();
    assert_eq!(settle(&store, ends).await, [true; 3]);
    store.maintain().await.unwrap();
    for lease in leases {
        assert!(store.get(lease.id).await.unwrap().is_some(), "it is kept");
    }
}
