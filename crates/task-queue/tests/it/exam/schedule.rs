//! Schedules and firings.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::{
    Schedule, Timing,
    store::{Firing, ScheduleRecord, State},
};

use super::{Store, claim, task, worker};

fn record(name: &str, every: u64) -> ScheduleRecord {
    let timing = Timing::every(Duration::from_secs(every)).unwrap();
    Schedule::new(name, timing).task(task("a")).unwrap().into_record()
}

fn firing(record: &ScheduleRecord) -> Firing {
    let seen = record.next.unwrap();
    Firing {
        schedule: record.name.clone(),
        seen,
        timing: record.timing.clone(),
        next: Some(seen + Duration::from_secs(10)),
        tasks: vec![(seen, task("a"))],
    }
}

async fn read(store: &Store, name: &str) -> ScheduleRecord {
    store.schedules().await.unwrap().into_iter().find(|schedule| schedule.name == name).unwrap()
}

pub(crate) async fn put_list_remove(store: Store) {
    let (first, second) = (record("b", 10), record("a", 20));
    store.put_schedule(first.clone()).await.unwrap();
    store.put_schedule(second.clone()).await.unwrap();
    assert_eq!(store.schedules().await.unwrap(), [second, first]);
    assert!(store.remove_schedule("b").await.unwrap());
    assert!(!store.remove_schedule("b").await.unwrap());
    assert_eq!(store.schedules().await.unwrap().len(), 1);
}

pub(crate) async fn unchanged_plan_keeps_its_next_time(store: Store) {
    let first = record("a", 10);
    store.put_schedule(first.clone()).await.unwrap();
    let mut later = first.clone();
    later.start = first.start + Duration::from_secs(5);
    later.next = first.next.map(|next| next + Duration::from_secs(5));
    store.put_schedule(later.clone()).await.unwrap();
    assert_eq!(read(&store, "a").await, first);
    let mut changed = later.clone();
    changed.timing = "every 20s".to_owned();
    store.put_schedule(changed.clone()).await.unwrap();
    assert_eq!(read(&store, "a").await.next, later.next);
}

pub(crate) async fn one_step_is_taken_once(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    let offers = (0..8).map(|_| store.fire(vec![firing(&plan)]));
    let answers: Vec<_> = futures_util::future::try_join_all(offers).await.unwrap().concat();
    assert_eq!(answers.iter().filter(|fired| **fired).count(), 1);
    let w = worker(&store).await;
    assert_eq!(claim(&store, w, 9).await.len(), 1);
    let now = read(&store, "a").await;
    assert_eq!(
        (now.fired, now.last, now.next),
        (1, plan.next, plan.next.map(|at| at + Duration::from_secs(10)))
    );
}

pub(crate) async fn a_nominal_time_fires_once(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [true]);
    // Removed and added again, the schedule stands at the same nominal time once more.
    store.remove_schedule("a").await.unwrap();
    store.put_schedule(plan.clone()).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [false]);
    assert_eq!(store.stats().await.unwrap()[0].counts, [(State::Queued, 1)].into());
    assert_ne!(read(&store, "a").await.next, plan.next, "it has moved on all the same");
}

pub(crate) async fn a_changed_schedule_voids_a_step(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    let mut changed = plan.clone();
    changed.timing = "every 20s".to_owned();
    store.put_schedule(changed).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [false], "another timing");
    let mut stale = firing(&read(&store, "a").await);
    stale.seen = Timestamp::UNIX_EPOCH;
    assert_eq!(store.fire(vec![stale]).await.unwrap(), [false], "another next time");
    store.remove_schedule("a").await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [false], "gone");
    assert!(store.stats().await.unwrap().is_empty());
}
