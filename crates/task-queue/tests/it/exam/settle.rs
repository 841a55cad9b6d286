//! Settling: verdicts, fences, attempts.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::store::{Outcome, State, Verdict};

use super::{Store, again, claim, claim_one, end, succeeded, task, worker};

pub(crate) async fn every_verdict_has_its_state(store: Store) {
    store.enqueue((0..6).map(|_| task("a")).collect()).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 6).await;
    let later = Timestamp::now() + Duration::from_secs(100);
    let verdicts = [
        (Verdict::Succeed(Ok(r#"{"x":1}"#.to_owned())), State::Succeeded, 0),
        (Verdict::Again { due: later, counts: true }, State::Scheduled, 1),
        (Verdict::Again { due: later, counts: false }, State::Scheduled, 0),
        (Verdict::Bury, State::Dead, 1),
        (Verdict::Cancel, State::Cancelled, 0),
        (Verdict::Release, State::Queued, 0),
    ];
    let ends =
        leases.iter().zip(&verdicts).map(|(lease, (verdict, ..))| end(lease, w, verdict.clone())).collect();
    assert_eq!(store.settle(ends).await.unwrap(), [true; 6]);
    for (lease, (verdict, state, errors)) in leases.iter().zip(&verdicts) {
        let record = store.get(lease.id).await.unwrap().unwrap();
        assert_eq!((record.state, record.errors), (*state, *errors), "{verdict:?}");
        assert_eq!(record.finished.is_some(), state.is_final(), "{verdict:?}");
        assert_eq!(record.attempts.is_empty(), matches!(verdict, Verdict::Release));
        let result = (*state == State::Succeeded).then(|| serde_json::json!({ "x": 1 }));
        assert_eq!(record.result, result);
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
    assert_eq!(store.settle(vec![end(&first, w, Verdict::Release)]).await.unwrap(), [true]);
    let second = claim_one(&store, w).await;
    assert_eq!(second.fence, first.fence + 1);
    assert_eq!(
        store.settle(vec![end(&first, w, succeeded())]).await.unwrap(),
        [false],
        "same worker, older lease"
    );
    assert_eq!(store.get(first.id).await.unwrap().unwrap().state, State::Running);
    assert_eq!(store.settle(vec![end(&second, w, succeeded())]).await.unwrap(), [true]);
}

pub(crate) async fn another_worker_is_refused(store: Store) {
    store.enqueue(vec![task("a"), task("a")]).await.unwrap();
    let (mine, other) = (worker(&store).await, worker(&store).await);
    let lease = claim(&store, mine, 1).await.pop().unwrap();
    let own = claim(&store, other, 1).await.pop().unwrap();
    let ends = vec![end(&lease, other, succeeded()), end(&own, other, succeeded())];
    assert_eq!(store.settle(ends).await.unwrap(), [false, true], "one refusal does not spoil the batch");
}

pub(crate) async fn settled_twice_counts_once(store: Store) {
    store.enqueue(vec![task("a")]).await.unwrap();
    let w = worker(&store).await;
    let lease = claim_one(&store, w).await;
    assert_eq!(store.settle(vec![end(&lease, w, again())]).await.unwrap(), [true]);
    assert_eq!(store.settle(vec![end(&lease, w, again())]).await.unwrap(), [false]);
    assert_eq!(store.get(lease.id).await.unwrap().unwrap().errors, 1);
}

pub(crate) async fn attempts_are_kept_in_order(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let w = worker(&store).await;
    for _ in 0..3 {
        let lease = claim_one(&store, w).await;
        store.settle(vec![end(&lease, w, again())]).await.unwrap();
    }
    let lease = claim_one(&store, w).await;
    assert_eq!(lease.errors, 3);
    store.settle(vec![end(&lease, w, succeeded())]).await.unwrap();
    let record = store.get(id).await.unwrap().unwrap();
    let seen: Vec<_> = record.attempts.iter().map(|attempt| (attempt.fence, attempt.outcome)).collect();
    let failed = Outcome::Failed;
    assert_eq!(seen, [(1, failed), (2, failed), (3, failed), (4, Outcome::Succeeded)]);
    assert!(record.attempts.iter().all(|attempt| attempt.ended >= attempt.started && attempt.worker == "w"));
}
