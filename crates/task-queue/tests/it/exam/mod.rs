//! The conformance suite of task stores: each guarantee of a store is a named test case, which runs on every store.
//!
//! Each case gets a new store. In the cases on leases, a lease lasts [`LEASE`]; in the others, longer than any case
//! takes. To add a store, add a function in [`open`] and its name in [`exam!`].

mod hand_out;
mod lease;
mod operate;
mod produce;
mod schedule;
mod settle;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use task_queue::store::{
    Attempt, Claim, Leased, NewTask, Outcome, Resolution, Settled, Settlement, TaskStore, WorkerInfo,
    sqlite::{SqliteOptions, SqliteStore},
};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const LEASE: Duration = Duration::from_millis(400);

pub(crate) type Store = Arc<dyn TaskStore>;

mod open {
    //! Opens new stores; the guard keeps their files.

    use super::*;

    pub(super) async fn sqlite(lease: Duration) -> (Store, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut options = SqliteOptions::new(folder.path().join("tasks.db"));
        options.lease = lease;
        (Arc::new(SqliteStore::open(options).await.unwrap()), folder)
    }
}

/// Creates every case of every topic as a test of one store: `exam::sqlite::lease::heartbeat_keeps_the_lease`.
macro_rules! cases {
    ($store:ident; $($topic:ident: $($case:ident)*;)*) => {
        mod $store {
            $(mod $topic {
                $(#[tokio::test]
                async fn $case() {
                    let lease = if stringify!($topic) == "lease" { super::super::LEASE } else { crate::support::SOON };
                    let (store, _guard) = super::super::open::$store(lease).await;
                    super::super::$topic::$case(store).await;
                })*
            })*
        }
    };
}

macro_rules! exam {
    ($($store:ident)*) => {
        $(cases! {
            $store;
            produce:
                stored_as_given
                same_id_is_one_task
                unique_key_is_held_until_the_end
                a_batch_answers_in_order;
            hand_out:
                priority_then_due_then_age
                only_asked_queues_and_no_more_than_asked
                one_task_goes_to_one_worker
                never_before_its_time
                next_due_is_told
                only_registered_kinds_however_many_others_wait
                many_kinds_in_many_queues
                expired_is_not_handed_out
                paused_queue_hands_out_nothing;
            lease:
                unregistered_worker_gets_nothing
                silent_workers_tasks_go_on_and_the_crash_is_counted
                heartbeat_keeps_the_lease
                lapsed_lease_is_not_revived
                poison_pill_is_buried_at_its_cap
                what_has_started_does_not_expire
                retired_worker_hands_back_at_no_cost;
            settle:
                every_verdict_has_its_state
                a_stale_fence_is_refused
                another_worker_is_refused
                settled_twice_counts_once
                attempts_are_kept_in_order
                snoozes_without_end_keep_the_newest_attempts
                long_errors_are_cut_with_a_note
                the_longest_times_to_live_settle;
            operate:
                cancel_waiting_and_running
                cancelled_while_running_does_not_retry
                purge_takes_waiting_tasks_only
                replay_gives_fresh_counts
                replay_respects_unique_keys
                ended_tells_who_is_done
                hints_follow_changes
                stats_and_workers_tell_what_is
                kinds_and_what_waits_are_told
                everything_old_is_pruned_in_one_round;
            schedule:
                put_list_remove
                unchanged_plan_keeps_its_next_time
                one_step_is_taken_once
                a_nominal_time_fires_once
                a_changed_schedule_voids_a_step
                a_held_unique_key_leaves_a_run_out
                a_clock_set_back_lets_times_fire_again;
        })*
    };
}

exam!(sqlite);

pub(crate) fn task(name: &str) -> NewTask {
    NewTask::named(name, "[]")
}

pub(crate) async fn worker(store: &Store) -> Uuid {
    let id = Uuid::now_v7();
    let info = WorkerInfo {
        id,
        name: format!("worker-{id}"),
        queues: vec!["default".to_owned()],
        tasks: vec!["a".to_owned()],
        concurrency: 1,
    };
    store.register(info).await.unwrap();
    id
}

/// The task kinds that the cases use.
pub(crate) fn kinds() -> Arc<[String]> {
    ["a".to_owned(), "b".to_owned()].into()
}

/// Settles tasks; returns whether each was recorded.
pub(crate) async fn settle(store: &Store, ends: Vec<Settlement>) -> Vec<bool> {
    let answers = store.settle(ends).await.into_iter().map(|answer| answer.unwrap());
    answers.map(|answer| answer == Settled::Recorded).collect()
}

pub(crate) async fn claim(store: &Store, worker: Uuid, limit: usize) -> Vec<Leased> {
    let claim = Claim { worker, queues: ["default".to_owned()].into(), kinds: kinds(), limit };
    store.claim(claim).await.unwrap().tasks
}

/// Claims until a task is available.
pub(crate) async fn claim_one(store: &Store, worker: Uuid) -> Leased {
    loop {
        store.renew(worker).await.unwrap();
        if let Some(task) = claim(store, worker, 1).await.pop() {
            return task;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn end(lease: &Leased, worker: Uuid, resolution: Resolution) -> Settlement {
    let outcome = match resolution {
        Resolution::Succeed(_) => Some(Outcome::Succeeded),
        Resolution::Release => None,
        _ => Some(Outcome::Failed),
    };
    let attempt = outcome.map(|outcome| Attempt {
        fence: lease.fence,
        worker: "w".to_owned(),
        started: lease.started,
        ended: Timestamp::now(),
        outcome,
        error: (outcome == Outcome::Failed).then(|| "went wrong".to_owned()),
    });
    Settlement { id: lease.id, worker, fence: lease.fence, attempt, resolution }
}

pub(crate) fn succeeded() -> Resolution {
    Resolution::Succeed(Ok("42".to_owned()))
}

pub(crate) fn again() -> Resolution {
    Resolution::Retry { due: Timestamp::now(), counts: true }
}

/// Runs housekeeping until a task is in a state.
pub(crate) async fn tend_until(store: &Store, id: Uuid, state: task_queue::store::State) {
    let deadline = tokio::time::Instant::now() + crate::support::SOON;
    loop {
        store.maintain().await.unwrap();
        let now = store.get(id).await.unwrap().map(|task| task.state);
        if now == Some(state) {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the task did not become {state} in time, it is {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
