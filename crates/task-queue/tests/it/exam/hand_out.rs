//! Tests claims.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use task_queue::store::{Claim, NewTask, State};

use super::{Store, claim, claim_one, kinds, task, tend_until, worker};

pub(crate) async fn priority_then_due_then_age(store: Store) {
    let past = |ms: i64| Some(Timestamp::from_millisecond(Timestamp::now().as_millisecond() - ms).unwrap());
    let make = |priority, due| NewTask { priority, due, ..task("a") };
    let (early, late) = (past(60_000), past(1_000));
    let tasks = vec![make(0, late), make(5, late), make(0, early), make(5, late), make(-1, early)];
    let ids: Vec<_> = tasks.iter().map(|task| task.id).collect();
    store.enqueue(tasks).await.unwrap();
    let w = worker(&store).await;
    let mut order: Vec<_> = claim(&store, w, 3).await.iter().map(|lease| lease.id).collect();
    order.extend(claim(&store, w, 3).await.iter().map(|lease| lease.id));
    assert_eq!(order, [ids[1], ids[3], ids[2], ids[0], ids[4]]);
}

pub(crate) async fn only_asked_queues_and_no_more_than_asked(store: Store) {
    let queued = |queue: &str| NewTask { queue: queue.to_owned(), ..task("a") };
    store.enqueue(vec![queued("x"), queued("y"), queued("z"), queued("x"), queued("y")]).await.unwrap();
    let w = worker(&store).await;
    let ask = async |queues: &[&str], limit| {
        let queues = queues.iter().map(ToString::to_string).collect();
        store.claim(Claim { worker: w, queues, kinds: kinds(), limit }).await.unwrap().tasks
    };
    assert!(ask(&[], 9).await.is_empty());
    assert!(ask(&["x"], 0).await.is_empty());
    assert!(ask(&["unheard of"], 9).await.is_empty());
    assert_eq!(ask(&["x", "y"], 3).await.len(), 3);
    let rest = ask(&["x", "y"], 9).await;
    assert_eq!(rest.iter().map(|lease| lease.queue.as_str()).collect::<Vec<_>>(), ["y"]);
}

pub(crate) async fn one_task_goes_to_one_worker(store: Store) {
    store.enqueue((0..300).map(|_| task("a")).collect()).await.unwrap();
    let claims = (0..8).map(|_| async {
        let w = worker(&store).await;
        let mut got = Vec::new();
        loop {
            store.renew(w).await.unwrap();
            let leases = claim(&store, w, 7).await;
            if leases.is_empty() {
                return got;
            }
            got.extend(leases.into_iter().map(|lease| lease.id));
        }
    });
    let got: Vec<_> = futures_util::future::join_all(claims).await.into_iter().flatten().collect();
    assert_eq!(got.len(), 300);
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), 300);
}

pub(crate) async fn never_before_its_time(store: Store) {
    let due = Timestamp::now() + Duration::from_micros(60_500);
    store.enqueue(vec![NewTask { due: Some(due), ..task("a") }]).await.unwrap();
    let w = worker(&store).await;
    let lease = claim_one(&store, w).await;
    assert!(Timestamp::now() >= due, "claimed before its due time");
    assert!(lease.started >= due && lease.due >= due, "rounded down");
}

pub(crate) async fn next_due_is_told(store: Store) {
    let due = Timestamp::from_millisecond(Timestamp::now().as_millisecond() + 500_000).unwrap();
    let later = NewTask { due: Some(due + Duration::from_secs(9)), ..task("a") };
    store.enqueue(vec![later, NewTask { due: Some(due), ..task("a") }]).await.unwrap();
    let w = worker(&store).await;
    let claimed = store
        .claim(Claim { worker: w, queues: ["default".to_owned()].into(), kinds: kinds(), limit: 1 })
        .await
        .unwrap();
    assert!(claimed.tasks.is_empty());
    assert_eq!(claimed.next_due, Some(due));
}

pub(crate) async fn expired_is_not_handed_out(store: Store) {
    let soon = Timestamp::now() + Duration::from_millis(20);
    let brief = NewTask { expires: Some(soon), ..task("a") };
    let waiting = NewTask { due: Some(soon + Duration::from_secs(900)), ..brief.clone() };
    let waiting = NewTask { id: uuid::Uuid::now_v7(), ..waiting };
    let lasting = NewTask { expires: Some(soon + Duration::from_secs(900)), ..task("a") };
    let (id, waits, lasts) = (brief.id, waiting.id, lasting.id);
    store.enqueue(vec![brief, waiting, lasting]).await.unwrap();
    while Timestamp::now() <= soon {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let w = worker(&store).await;
    assert_eq!(claim(&store, w, 9).await.iter().map(|lease| lease.id).collect::<Vec<_>>(), [lasts]);
    tend_until(&store, id, State::Expired).await;
    tend_until(&store, waits, State::Expired).await;
}

pub(crate) async fn only_registered_kinds_however_many_others_wait(store: Store) {
    let others = (0..5_000).map(|number| NewTask { priority: 9, ..task(&format!("other-{}", number % 50)) });
    store.enqueue(others.collect()).await.unwrap();
    let own = [3, 7, 5].map(|priority| NewTask { priority, ..task("a") });
    let ids = own.each_ref().map(|task| task.id);
    store.enqueue(own.to_vec()).await.unwrap();
    let w = worker(&store).await;
    let got = claim(&store, w, 9).await;
    assert_eq!(got.iter().map(|lease| lease.id).collect::<Vec<_>>(), [ids[1], ids[2], ids[0]]);
    let none = Claim { worker: w, queues: ["default".to_owned()].into(), kinds: [].into(), limit: 9 };
    assert!(store.claim(none).await.unwrap().tasks.is_empty());
    assert_eq!(store.depths().await.unwrap()[0].counts[&State::Queued], 5_000, "the others wait");
}

pub(crate) async fn many_kinds_in_many_queues(store: Store) {
    let make = |number: usize| NewTask {
        queue: format!("q{}", number % 7),
        priority: (number * 37 % 101) as i32,
        ..task(&format!("kind-{}", number % 600))
    };
    let mut tasks: Vec<_> = (0..1_200).map(make).collect();
    store.enqueue(tasks.clone()).await.unwrap();
    store.pause("q3", true).await.unwrap();
    tasks.retain(|task| task.queue != "q3");
    let w = worker(&store).await;
    let claim = Claim {
        worker: w,
        queues: (0..7).map(|number| format!("q{number}")).collect(),
        kinds: (0..600).map(|number| format!("kind-{number}")).collect(),
        limit: 100,
    };
    let mut got = Vec::new();
    loop {
        let leases = store.claim(claim.clone()).await.unwrap().tasks;
        if leases.is_empty() {
            break;
        }
        assert!(leases.len() <= 100);
        got.extend(leases.iter().map(|lease| lease.priority));
        store.renew(w).await.unwrap();
    }
    let mut wanted: Vec<_> = tasks.iter().map(|task| task.priority).collect();
    wanted.sort_unstable_by_key(|priority| -priority);
    assert_eq!(got, wanted, "the best first, whatever their kind and queue");
}

pub(crate) async fn paused_queue_hands_out_nothing(store: Store) {
    store.enqueue(vec![task("a")]).await.unwrap();
    let w = worker(&store).await;
    store.pause("default", true).await.unwrap();
    store.pause("default", true).await.unwrap();
    assert!(claim(&store, w, 1).await.is_empty());
    assert!(store.stats().await.unwrap()[0].paused);
    store.pause("default", false).await.unwrap();
    assert_eq!(claim(&store, w, 1).await.len(), 1);
}
