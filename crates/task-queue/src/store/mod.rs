//! The record of all tasks behind four small traits, so that PostgreSQL and Redis can stand where SQLite does.
//!
//! The store is the truth: a broadcast is only a [hint](Hints) to look at it sooner. Every store answers
//! only after what it says is durable, fences out workers it took for dead, and never hands one task to two
//! workers at a time. The rules are examined by `exam`, the same for every store.

mod notify;
mod record;
pub mod sqlite;
mod url;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use uuid::Uuid;

pub use notify::{Channel, Notifier};
pub(crate) use record::unique_key;
pub use record::{
    Attempt, Claim, Claimed, Enqueued, Filter, Firing, Json, LeaseStatus, Leased, Maintenance, NewTask,
    Outcome, QueueStats, Renewal, Resolution, ScheduleRecord, Settled, Settlement, State, TaskKind,
    TaskRecord, Waiting, WorkerInfo, WorkerRecord,
};
pub use url::{StoreUrl, url_beside_bus};

use crate::Result;

/// The answer of a store method: boxed, so that the traits are object safe.
pub type Reply<'a, T> = BoxFuture<'a, Result<T>>;

/// The hot path: produce, lease, run, settle. Every method takes and answers batches.
pub trait TaskQueue: Send + Sync {
    /// Stores new tasks; returns when they are durable, in the order given. A task whose id exists, or whose
    /// unique key is held by an unfinished task of the same name, is not stored again: the answer carries the
    /// id of the one that is there.
    fn enqueue(&self, tasks: Vec<NewTask>) -> Reply<'_, Vec<Enqueued>>;

    /// Makes known the kinds that a worker runs with their options, for calls by name. A kind is known while a live
    /// worker has registered it, and as long after that as an unknown one is waited for.
    fn publish(&self, kinds: Vec<TaskKind>) -> Reply<'_, ()>;

    /// Announces a worker and starts its lease. The id is fresh for each process start.
    fn register(&self, worker: WorkerInfo) -> Reply<'_, ()>;

    /// How long a silent worker keeps its tasks. Heartbeats should come several times as often.
    fn lease(&self) -> Duration;

    /// Extends the lease of everything the worker holds, and tells which of it was asked to stop.
    fn renew(&self, worker: Uuid) -> Reply<'_, Renewal>;

    /// Takes the worker off the list and hands back what it still holds, at no cost of an attempt.
    fn retire(&self, worker: Uuid) -> Reply<'_, u64>;

    /// Leases due tasks of the kinds and queues named to a registered worker: highest priority first, then oldest
    /// due. No more than `limit`, and perhaps fewer than there are: whoever got some asks again.
    /// Fails with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) when the worker's lease has lapsed.
    fn claim(&self, claim: Claim) -> Reply<'_, Claimed>;

    /// Records how leased tasks ended, with an answer for each in the order given. A record that the store cannot
    /// keep fails alone, with [`ErrorKind::Refused`](crate::ErrorKind::Refused), and its task is set aside as dead.
    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Vec<Result<Settled>>>;

    /// Housekeeping that any worker does every second: hands on what dead workers held, ends what expired, deletes
    /// what is past its time to live, and buries due tasks of kinds that no worker has registered for too long.
    fn maintain(&self) -> Reply<'_, Maintenance>;

    /// Wake-ups: changes made by this process at once, those of other processes as soon as the store hears.
    fn notifier(&self) -> &Notifier;
}

/// What an operator does to tasks.
pub trait TaskControl: Send + Sync {
    /// Cancels a waiting task at once, asks a running one to stop. Returns the state it was in.
    fn cancel(&self, id: Uuid) -> Reply<'_, State>;

    /// Stops hand-outs from a queue (`true`) or resumes them; lasts across restarts.
    fn pause(&self, queue: &str, paused: bool) -> Reply<'_, ()>;

    /// Deletes the waiting tasks of these queues (of all when empty); running ones go on. Returns how many.
    fn purge(&self, queues: &[String]) -> Reply<'_, u64>;

    /// Puts dead tasks back in their queue with fresh counts: those given, or all when empty. Returns how many;
    /// a task whose unique key is held by another unfinished task stays dead.
    fn replay(&self, ids: &[Uuid]) -> Reply<'_, u64>;

    /// Deletes dead tasks: those given, or all when empty. Returns how many.
    fn drop_dead(&self, ids: &[Uuid]) -> Reply<'_, u64>;
}

/// Looking inside. Reads never wait for writers.
pub trait TaskQuery: Send + Sync {
    /// The whole record of one task, or `None` when unknown or past its time to live.
    fn get(&self, id: Uuid) -> Reply<'_, Option<TaskRecord>>;

    /// Which of these tasks have ended (or are unknown).
    fn ended(&self, ids: Vec<Uuid>) -> Reply<'_, Vec<Uuid>>;

    /// Tasks by filter, newest first; scheduled ones by due time.
    fn list(&self, filter: Filter) -> Reply<'_, Vec<TaskRecord>>;

    /// Counts by queue and state, and which queues are paused. Reads every finished record: for people who ask.
    fn stats(&self) -> Reply<'_, Vec<QueueStats>>;

    /// The same without the finished tasks, dead ones apart: costs the same however many of them are kept.
    fn depths(&self) -> Reply<'_, Vec<QueueStats>>;

    /// Due tasks by queue and kind, and who takes them.
    fn waiting(&self) -> Reply<'_, Vec<Waiting>>;

    /// The task kinds that are known, by name.
    fn kinds(&self) -> Reply<'_, Vec<TaskKind>>;

    /// How long a due task waits for a worker that has registered its kind before it is dead.
    fn patience(&self) -> Duration;

    /// Live workers with their last heartbeat.
    fn workers(&self) -> Reply<'_, Vec<WorkerRecord>>;
}

/// Schedules live in the store; each firing is kept under the unique key (schedule, nominal time).
pub trait ScheduleStore: Send + Sync {
    /// Adds or replaces a schedule by name. One that did not change keeps its next time.
    fn put_schedule(&self, schedule: ScheduleRecord) -> Reply<'_, ()>;

    /// Removes a schedule; `false` when there was none.
    fn remove_schedule(&self, name: &str) -> Reply<'_, bool>;

    /// All schedules by name.
    fn schedules(&self) -> Reply<'_, Vec<ScheduleRecord>>;

    /// Enqueues firings and moves their schedules on, in one transaction each; answers how many tasks each has
    /// enqueued. That is none when the schedule was moved or changed by someone else meanwhile, when the nominal time
    /// has fired before, or when an unfinished task holds the unique key.
    fn fire(&self, firings: Vec<Firing>) -> Reply<'_, Vec<u64>>;
}

/// Everything a client, worker or scheduler asks of a store.
pub trait TaskStore: TaskQueue + TaskControl + TaskQuery + ScheduleStore + fmt::Debug {}

impl<S: TaskQueue + TaskControl + TaskQuery + ScheduleStore + fmt::Debug> TaskStore for S {}

/// Opens the store that a URL names: `sqlite:PATH` in this build.
///
/// # Errors
/// [`Url`](crate::ErrorKind::Url) for another scheme or an unknown option, saying what works; otherwise what
/// opening the file said.
pub async fn open(url: &str) -> Result<Arc<dyn TaskStore>> {
    match StoreUrl::parse(url)? {
        StoreUrl::Sqlite(options) => Ok(Arc::new(sqlite::SqliteStore::open(options).await?)),
    }
}

/// Now, in the whole milliseconds that stores keep.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Rounds up to a millisecond, so that nothing is ever due early.
pub(crate) fn ceil_ms(at: Timestamp) -> i64 {
    let ms = at.as_millisecond();
    if Timestamp::from_millisecond(ms).is_ok_and(|floor| floor < at) { ms + 1 } else { ms }
}

pub(crate) fn from_ms(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}
