//! Tests leases: heartbeats, missing heartbeats, crash caps, retirement.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::{
    ErrorKind,
    store::{Claim, LeaseStatus, Leased, NewTask, Outcome, Renewal, Resolution, State},
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{LEASE, Store, claim, claim_one, end, kinds, settle, succeeded, task, tend_until, worker};
use crate::support::SOON;

pub(crate) async fn unregistered_worker_gets_nothing(store: Store) {
    store.enqueue(vec![task("a")]).await.unwrap();
    let stranger =
        Claim { worker: Uuid::now_v7(), queues: ["default".to_owned()].into(), kinds: kinds(), limit: 1 };
    assert_eq!(store.claim(stranger).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.renew(Uuid::now_v7()).await.unwrap(), Renewal::Lost);
}

pub(crate) async fn silent_workers_tasks_go_on_and_the_crash_is_counted(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let (dead, lost) = taken(&store).await;
    tend_until(&store, id, State::Queued).await;
    let (w, lease) = taken(&store).await;
    assert_eq!((lease.id, lease.crashes, lease.errors), (id, 1, 0));
    assert!(lease.fence > lost.fence);
    assert_eq!(
        settle(&store, vec![end(&lost, dead, succeeded())]).await,
        [false],
        "the late end of the dead worker"
    );
    assert_eq!(settle(&store, vec![end(&lease, w, succeeded())]).await, [true]);
    let record = store.get(id).await.unwrap().unwrap();
    let outcomes: Vec<_> = record.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::Crashed, Outcome::Succeeded]);
    assert_eq!((record.attempts[0].fence, record.attempts[0].started), (lost.fence, lost.started));
}

/// Whether a lease that was requested at `asked` may have expired: only when this machine was suspended for as
/// long. The store counts whole milliseconds.
fn late(asked: Instant) -> bool {
    asked.elapsed() + Duration::from_millis(1) >= LEASE
}

/// Registers a new worker and claims a task for it.
async fn taken(store: &Store) -> (Uuid, Leased) {
    let begin = Instant::now();
    loop {
        let asked = Instant::now();
        let w = worker(store).await;
        let claim = Claim { worker: w, queues: ["default".to_owned()].into(), kinds: kinds(), limit: 1 };
        match store.claim(claim).await {
            Ok(mut claimed) => {
                if let Some(lease) = claimed.tasks.pop() {
                    return (w, lease);
                }
            }
            Err(error) => assert!(error.kind() == ErrorKind::Fenced && late(asked), "{error}"),
        }
        store.retire(w).await.unwrap();
        assert!(begin.elapsed() < SOON, "no task came in time");
    }
}

pub(crate) async fn heartbeat_keeps_the_lease(store: Store) {
    let id = store.enqueue(vec![NewTask { max_crashes: 99, ..task("a") }]).await.unwrap()[0].id;
    let begin = Instant::now();
    while !heartbeats_in_time(&store, id).await {
        assert!(begin.elapsed() < SOON, "the machine is suspended for longer than a lease in every run");
        tend_until(&store, id, State::Queued).await;
    }
}

/// A worker claims the task and holds it by heartbeats for three leases. Returns whether each heartbeat came in
/// time; when one did not, the run proves nothing.
async fn heartbeats_in_time(store: &Store, id: Uuid) -> bool {
    let mut asked = Instant::now();
    let (w, lease) = taken(store).await;
    assert_eq!(lease.id, id);
    let begin = Instant::now();
    while begin.elapsed() < LEASE * 3 {
        let before = std::mem::replace(&mut asked, Instant::now());
        let renewal = store.renew(w).await.unwrap();
        if late(before) {
            store.retire(w).await.unwrap();
            return false;
        }
        assert_eq!(renewal, Renewal::LeaseStatus(LeaseStatus::default()));
        store.maintain().await.unwrap();
        tokio::time::sleep(LEASE / 8).await;
    }
    let state = store.get(id).await.unwrap().unwrap().state;
    let seen = store.workers().await.unwrap();
    if late(asked) {
        store.retire(w).await.unwrap();
        return false;
    }
    assert_eq!(state, State::Running);
    assert_eq!((seen.len(), seen[0].running), (1, 1));
    true
}

pub(crate) async fn lapsed_lease_is_not_revived(store: Store) {
    let w = worker(&store).await;
    // The lease has expired, but no worker has run housekeeping yet.
    tokio::time::sleep(LEASE + Duration::from_millis(20)).await;
    assert_eq!(store.renew(w).await.unwrap(), Renewal::Lost);
    store.enqueue(vec![task("a")]).await.unwrap();
    let late = Claim { worker: w, queues: ["default".to_owned()].into(), kinds: kinds(), limit: 1 };
    assert_eq!(store.claim(late).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(store.workers().await.unwrap().is_empty());
}

pub(crate) async fn poison_pill_is_buried_at_its_cap(store: Store) {
    let pill = NewTask { max_crashes: 2, max_retries: 99, ..task("a") };
    let id = store.enqueue(vec![pill]).await.unwrap()[0].id;
    for state in [State::Queued, State::Dead] {
        taken(&store).await;
        tend_until(&store, id, state).await;
    }
    let record = store.get(id).await.unwrap().unwrap();
    assert_eq!((record.crashes, record.errors), (2, 0));
    assert!(record.error.unwrap().contains("did not renew its lease"));
    assert!(record.finished.is_some());
}

pub(crate) async fn retired_worker_hands_back_at_no_cost(store: Store) {
    let id = store.enqueue(vec![task("a")]).await.unwrap()[0].id;
    let w = worker(&store).await;
    claim(&store, w, 1).await;
    assert_eq!(store.retire(w).await.unwrap(), 1);
    let record = store.get(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.errors, record.crashes), (State::Queued, 0, 0));
    assert!(record.attempts.is_empty());
    assert_eq!(store.retire(w).await.unwrap(), 0);
}

pub(crate) async fn what_has_started_does_not_expire(store: Store) {
    let soon = Timestamp::now() + Duration::from_secs(3);
    let make = || NewTask { expires: Some(soon), ..task("a") };
    let (failing, orphan) = (make(), make());
    store.enqueue(vec![failing.clone()]).await.unwrap();
    let (w, lease) = taken(&store).await;
    assert_eq!(
        settle(&store, vec![end(&lease, w, Resolution::Retry { due: soon, counts: true })]).await,
        [true]
    );
    store.enqueue(vec![orphan.clone()]).await.unwrap();
    assert_eq!(taken(&store).await.1.id, orphan.id);
    while Timestamp::now() <= soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tend_until(&store, orphan.id, State::Queued).await;
    let retried = store.get(failing.id).await.unwrap().unwrap();
    assert!(!retried.state.is_final(), "{}", retried.state);
    assert_eq!(retried.error.as_deref(), Some("went wrong"));
    let w = worker(&store).await;
    for _ in 0..2 {
        let lease = claim_one(&store, w).await;
        assert_eq!(settle(&store, vec![end(&lease, w, succeeded())]).await, [true]);
    }
    for id in [failing.id, orphan.id] {
        assert_eq!(store.get(id).await.unwrap().unwrap().state, State::Succeeded);
    }
}
