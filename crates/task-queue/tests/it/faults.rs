//! Tests faults: a part of a worker that ends unexpectedly ends the worker, and an unavailable store does not block
//! the worker's end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use task_queue::{
    Error, ErrorKind, Result, Worker,
    store::{
        Claim, Claimed, Enqueued, Filter, Firing, Maintenance, NewTask, Notifier, QueueStats, Renewal, Reply,
        ScheduleRecord, ScheduleStore, Settled, Settlement, State, TaskControl, TaskKind, TaskQuery,
        TaskQueue, TaskRecord, TaskStore, Waiting, WorkerInfo, WorkerRecord,
    },
    task,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::support::{Bench, SOON, until};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// A panic in this crate's code, in the caller's task.
    Panic,
    /// The future never completes.
    Silence,
}

/// A real store; one of its methods fails after the fault is switched on.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn TaskStore>,
    at: &'static str,
    fault: Fault,
    armed: AtomicBool,
    struck: AtomicBool,
}

impl Faulty {
    fn new(inner: &Arc<dyn TaskStore>, at: &'static str, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            at,
            fault,
            armed: AtomicBool::new(false),
            struck: AtomicBool::new(false),
        })
    }

    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn strikes(&self, method: &str) -> bool {
        let strikes = method == self.at && self.armed.load(Ordering::SeqCst);
        self.struck.fetch_or(strikes, Ordering::SeqCst);
        assert!(!strikes || self.fault != Fault::Panic, "a bug in {method}");
        strikes
    }
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $answer {
            if self.strikes(stringify!($name)) {
                return Box::pin(std::future::pending());
            }
            self.inner.$name($($arg),*)
        })*
    };
}

impl TaskQueue for Faulty {
    pass! {
        enqueue(tasks: Vec<NewTask>) -> Reply<'_, Vec<Enqueued>>;
        publish(kinds: Vec<TaskKind>) -> Reply<'_, ()>;
        register(worker: WorkerInfo) -> Reply<'_, ()>;
        renew(worker: Uuid) -> Reply<'_, Renewal>;
        retire(worker: Uuid) -> Reply<'_, u64>;
        claim(claim: Claim) -> Reply<'_, Claimed>;
        settle(settlements: Vec<Settlement>) -> BoxFuture<'_, Vec<Result<Settled>>>;
        maintain() -> Reply<'_, Maintenance>;
    }

    fn lease(&self) -> Duration {
        self.inner.lease()
    }

    fn notifier(&self) -> &Notifier {
        self.inner.notifier()
    }
}

impl TaskControl for Faulty {
    pass! {
        cancel(id: Uuid) -> Reply<'_, State>;
        pause(queue: &str, paused: bool) -> Reply<'_, ()>;
        purge(queues: &[String]) -> Reply<'_, u64>;
        replay(ids: &[Uuid]) -> Reply<'_, u64>;
        drop_dead(ids: &[Uuid]) -> Reply<'_, u64>;
    }
}

impl TaskQuery for Faulty {
    pass! {
        get(id: Uuid) -> Reply<'_, Option<TaskRecord>>;
        ended(ids: Vec<Uuid>) -> Reply<'_, Vec<Uuid>>;
        list(filter: Filter) -> Reply<'_, Vec<TaskRecord>>;
        stats() -> Reply<'_, Vec<QueueStats>>;
        depths() -> Reply<'_, Vec<QueueStats>>;
        waiting() -> Reply<'_, Vec<Waiting>>;
        kinds() -> Reply<'_, Vec<TaskKind>>;
        workers() -> Reply<'_, Vec<WorkerRecord>>;
    }

    fn patience(&self) -> Duration {
        self.inner.patience()
    }
}

impl ScheduleStore for Faulty {
    pass! {
        put_schedule(schedule: ScheduleRecord) -> Reply<'_, ()>;
        remove_schedule(name: &str) -> Reply<'_, bool>;
        schedules() -> Reply<'_, Vec<ScheduleRecord>>;
        fire(firings: Vec<Firing>) -> Reply<'_, Vec<u64>>;
    }
}

#[task]
async fn double(number: u32) -> Result<u32, String> {
    Ok(number * 2)
}

async fn short_lease() -> Bench {
    Bench::with(|options| options.lease = Duration::from_secs(1)).await
}

/// Runs a worker without shutdown on a store that fails after the worker has started; returns the worker's error.
async fn broken(at: &'static str) -> Error {
    let bench = short_lease().await;
    let store = Faulty::new(&bench.store, at, Fault::Panic);
    let worker = Worker::new(store.clone()).register(double).run_until(std::future::pending());
    let worker = tokio::spawn(worker);
    assert_eq!(double.delay(1).on(&bench.client).await.unwrap().get(SOON).await.unwrap(), 2);
    store.arm();
    // A task to claim and to settle.
    double.delay(2).on(&bench.client).await.unwrap();
    let ended = tokio::time::timeout(SOON, worker)
        .await
        .expect("the worker ends instead of continuing without the failed part");
    ended.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_part_that_dies_ends_the_worker() {
    for (at, part) in
        [("claim", "fetcher"), ("settle", "acker"), ("maintain", "housekeeping"), ("renew", "heartbeat")]
    {
        let error = broken(at).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(&format!("the {part} of worker")), "{at}: {error}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_does_not_hold_up_the_end() {
    for at in ["claim", "settle", "retire", "renew"] {
        let bench = short_lease().await;
        let store = Faulty::new(&bench.store, at, Fault::Silence);
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = Worker::new(store.clone()).register(double).run_until(async { drop(stopped.await) });
        let worker = tokio::spawn(worker);
        assert_eq!(double.delay(1).on(&bench.client).await.unwrap().get(SOON).await.unwrap(), 2);
        store.arm();
        double.delay(2).on(&bench.client).await.unwrap();
        if at != "retire" {
            until("it waits for an answer", || async { store.struck.load(Ordering::SeqCst) }).await;
        }
        drop(stop);
        let ended = tokio::time::timeout(SOON, worker).await.expect("it ends").unwrap();
        match at {
            // The worker does not wait for a lease that may be lost, and everything else was done.
            "renew" => drop(ended),
            _ => assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable, "{at}: not all was done"),
        }
    }
}
