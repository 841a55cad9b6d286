//! Tests the operator's commands, queries and notifications.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::store::{Channel, Filter, LeaseStatus, NewTask, Renewal, Resolution, State, TaskKind};
use uuid::Uuid;

use super::{Store, again, claim, claim_one, end, settle, succeeded, task, worker};
use crate::support::SOON;

pub(crate) async fn cancel_waiting_and_running(store: Store) {
    let later = Some(Timestamp::now() + Duration::from_secs(100));
    let ids: Vec<_> = store
        .enqueue(vec![task("a"), task("a"), NewTask { due: later, ..task("a") }])
        .await
        .unwrap()
        .into_iter()
        .map(|task| task.id)
        .collect();
    let w = worker(&store).await;
    let lease = claim(&store, w, 1).await.pop().unwrap();
    assert_eq!(lease.id, ids[0]);
    assert_eq!(store.cancel(ids[0]).await.unwrap(), State::Running);
    assert_eq!(store.cancel(ids[1]).await.unwrap(), State::Queued);
    assert_eq!(store.cancel(ids[2]).await.unwrap(), State::Scheduled);
    assert_eq!(store.cancel(ids[2]).await.unwrap(), State::Cancelled);
    assert_eq!(store.renew(w).await.unwrap(), Renewal::LeaseStatus(LeaseStatus { cancelled: vec![ids[0]] }));
    settle(&store, vec![end(&lease, w, Resolution::Cancel)]).await;
    for id in ids {
        assert_eq!(store.get(id).await.unwrap().unwrap().state, State::Cancelled);
    }
    assert!(claim(&store, w, 9).await.is_empty());
}

pub(crate) async fn cancelled_while_running_does_not_retry(store: Store) {
    store.enqueue(vec![task("a"), task("a")]).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 2).await;
    for lease in &leases {
        store.cancel(lease.id).await.unwrap();
    }
    let ends = vec![end(&leases[0], w, again()), end(&leases[1], w, succeeded())];
    settle(&store, ends).await;
    assert_eq!(store.get(leases[0].id).await.unwrap().unwrap().state, State::Cancelled);
    assert_eq!(
        store.get(leases[1].id).await.unwrap().unwrap().state,
        State::Succeeded,
        "it was done already"
    );
}

pub(crate) async fn purge_takes_waiting_tasks_only(store: Store) {
    let other = NewTask { queue: "other".to_owned(), ..task("a") };
    let later = NewTask { due: Some(Timestamp::now() + Duration::from_secs(100)), ..task("a") };
    store.enqueue(vec![task("a"), task("a"), later, other.clone()]).await.unwrap();
    let w = worker(&store).await;
    let running = claim_one(&store, w).await;
    assert_eq!(store.purge(&["default".to_owned()]).await.unwrap(), 2);
    assert_eq!(store.get(running.id).await.unwrap().unwrap().state, State::Running);
    assert!(store.get(other.id).await.unwrap().is_some());
    assert_eq!(store.purge(&[]).await.unwrap(), 1);
}

pub(crate) async fn replay_gives_fresh_counts(store: Store) {
    store.enqueue(vec![task("a"), task("a"), task("a")]).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 3).await;
    settle(&store, leases.iter().map(|lease| end(lease, w, Resolution::DeadLetter)).collect()).await;
    assert_eq!(store.replay(&[leases[0].id, Uuid::now_v7()]).await.unwrap(), 1);
    let back = claim_one(&store, w).await;
    assert_eq!((back.id, back.errors, back.crashes), (leases[0].id, 0, 0));
    assert_eq!(store.drop_dead(&[leases[1].id]).await.unwrap(), 1);
    assert!(store.get(leases[1].id).await.unwrap().is_none());
    assert_eq!(store.replay(&[]).await.unwrap(), 1);
    assert_eq!(store.replay(&[]).await.unwrap(), 0);
}

pub(crate) async fn replay_respects_unique_keys(store: Store) {
    let keyed = || NewTask { unique: Some("k".to_owned()), ..task("a") };
    store.enqueue(vec![keyed()]).await.unwrap();
    let w = worker(&store).await;
    let dead = claim_one(&store, w).await;
    settle(&store, vec![end(&dead, w, Resolution::DeadLetter)]).await;
    store.enqueue(vec![keyed()]).await.unwrap();
    assert_eq!(store.replay(&[]).await.unwrap(), 0);
    assert_eq!(store.get(dead.id).await.unwrap().unwrap().state, State::Dead);
}

pub(crate) async fn ended_tells_who_is_done(store: Store) {
    store.enqueue(vec![task("a"), task("a")]).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 2).await;
    let ids = vec![leases[0].id, leases[1].id, Uuid::now_v7()];
    assert_eq!(store.ended(ids.clone()).await.unwrap(), ids[2..]);
    settle(&store, vec![end(&leases[1], w, succeeded())]).await;
    assert_eq!(store.ended(ids.clone()).await.unwrap(), ids[1..]);
}

pub(crate) async fn hints_follow_changes(store: Store) {
    let mut work = store.notifier().watch(Channel::Work);
    let mut ended = store.notifier().watch(Channel::Ended);
    store.enqueue(vec![task("a")]).await.unwrap();
    tokio::time::timeout(SOON, work.changed()).await.expect("a notification of work").unwrap();
    let w = worker(&store).await;
    let lease = claim_one(&store, w).await;
    settle(&store, vec![end(&lease, w, succeeded())]).await;
    tokio::time::timeout(SOON, ended.changed()).await.expect("a notification of the end").unwrap();
}

pub(crate) async fn stats_and_workers_tell_what_is(store: Store) {
    let later = NewTask { due: Some(Timestamp::now() + Duration::from_secs(100)), ..task("b") };
    store.enqueue(vec![task("a"), task("a"), task("a"), later]).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 2).await;
    settle(&store, vec![end(&leases[0], w, succeeded())]).await;
    let stats = store.stats().await.unwrap();
    let counts = [(State::Scheduled, 1), (State::Queued, 1), (State::Running, 1), (State::Succeeded, 1)]
        .into_iter()
        .collect();
    assert_eq!((stats.len(), &stats[0].counts), (1, &counts));
    let list =
        async |filter| store.list(filter).await.unwrap().iter().map(|task| task.state).collect::<Vec<_>>();
    let only = |state| Filter { state: Some(state), ..Filter::default() };
    assert_eq!(list(only(State::Running)).await, [State::Running]);
    assert_eq!(list(Filter { name: Some("b".to_owned()), ..Filter::default() }).await, [State::Scheduled]);
    assert_eq!(list(Filter { limit: 3, ..Filter::default() }).await.len(), 3);
    assert!(list(Filter { queue: Some("none".to_owned()), ..Filter::default() }).await.is_empty());
    let workers = store.workers().await.unwrap();
    assert_eq!((workers.len(), workers[0].info.id, workers[0].running), (1, w, 1));
}

pub(crate) async fn kinds_and_what_waits_are_told(store: Store) {
    let kind = TaskKind {
        name: "c".to_owned(),
        parameters: vec!["x".to_owned()],
        queue: "mail".to_owned(),
        retries: 7,
        priority: -3,
        crashes: 2,
        unique: true,
        expires: Some(Duration::from_secs(90)),
        result_ttl: Duration::from_millis(1500),
    };
    store.publish(vec![kind.clone()]).await.unwrap();
    assert_eq!(store.kinds().await.unwrap(), std::slice::from_ref(&kind));
    let (first, second) = (kind.task("[ 1 ]", None), kind.task("[]", Some(r#"{"x": 1}"#)));
    assert!(
        first.unique.is_some() && first.unique == second.unique,
        "the same arguments, however they are given"
    );
    assert_eq!(
        (first.queue.as_str(), first.max_retries, first.priority, first.max_crashes),
        ("mail", 7, -3, 2)
    );
    assert!(first.expires.is_some());

    worker(&store).await;
    store.enqueue(vec![task("a"), task("a"), task("unheard of"), first]).await.unwrap();
    let waiting = store.waiting().await.unwrap();
    let told: Vec<_> = waiting
        .iter()
        .map(|kind| (&*kind.queue, &*kind.name, kind.tasks, kind.workers, kind.known))
        .collect();
    assert_eq!(
        told,
        [("default", "a", 2, 1, true), ("default", "unheard of", 1, 0, false), ("mail", "c", 1, 0, true)]
    );
}

pub(crate) async fn everything_old_is_pruned_in_one_round(store: Store) {
    let brief = || NewTask { result_ttl: Duration::ZERO, ..task("a") };
    store.enqueue((0..2_500).map(|_| brief()).collect()).await.unwrap();
    let w = worker(&store).await;
    let leases = claim(&store, w, 2_500).await;
    settle(&store, leases.iter().map(|lease| end(lease, w, succeeded())).collect()).await;
    assert_eq!(store.maintain().await.unwrap().pruned, 2_500);
    assert!(store.stats().await.unwrap().is_empty());
}
