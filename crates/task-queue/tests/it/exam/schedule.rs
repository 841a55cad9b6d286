//! Tests schedules and firings.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::{
    Schedule, Timing,
    store::{Firing, NewTask, ScheduleRecord, State},
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
        set_back: None,
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
    assert_eq!(answers.iter().sum::<u64>(), 1);
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
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [1]);
    // The schedule is removed and added again, so it has the same nominal time once more.
    store.remove_schedule("a").await.unwrap();
    store.put_schedule(plan.clone()).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [0]);
    assert_eq!(store.stats().await.unwrap()[0].counts, [(State::Queued, 1)].into());
    assert_ne!(read(&store, "a").await.next, plan.next, "it has advanced nevertheless");
}

pub(crate) async fn a_changed_schedule_voids_a_step(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    let mut changed = plan.clone();
    changed.timing = "every 20s".to_owned();
    store.put_schedule(changed).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [0], "another timing");
    let mut stale = firing(&read(&store, "a").await);
    stale.seen = Timestamp::UNIX_EPOCH;
    assert_eq!(store.fire(vec![stale]).await.unwrap(), [0], "another next time");
    store.remove_schedule("a").await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [0], "gone");
    assert!(store.stats().await.unwrap().is_empty());
}

pub(crate) async fn a_held_unique_key_leaves_a_run_out(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    let keyed = || NewTask { unique: Some("k".to_owned()), ..task("a") };
    let mut first = firing(&plan);
    first.tasks[0].1 = keyed();
    let mut second = firing(&ScheduleRecord { next: first.next, ..plan.clone() });
    second.tasks[0].1 = keyed();
    assert_eq!(store.fire(vec![first, second]).await.unwrap(), [1, 0]);
    assert_eq!(read(&store, "a").await.fired, 1, "a skipped run does not count as fired");
}

pub(crate) async fn a_clock_set_back_lets_times_fire_again(store: Store) {
    let plan = record("a", 10);
    store.put_schedule(plan.clone()).await.unwrap();
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [1]);
    let back = Firing {
        seen: read(&store, "a").await.next.unwrap(),
        next: plan.next,
        tasks: Vec::new(),
        set_back: Some(plan.next.unwrap() - Duration::from_secs(3600)),
        ..firing(&plan)
    };
    assert_eq!(store.fire(vec![back]).await.unwrap(), [0]);
    assert_eq!(store.fire(vec![firing(&plan)]).await.unwrap(), [1], "the same time once more");
}
