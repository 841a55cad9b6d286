//! Defines the task store: four small traits, so that a PostgreSQL or Redis store can replace the SQLite store.
//!
//! The store is the only source of truth: a [notification](Notifier) only makes a process read it sooner. Every
//! store replies only after the reported change is durable, fences off workers whose lease has expired, and never
//! leases one task to two workers at a time. The test suite `exam` checks these rules, the same for every store.

mod notify;
mod record;
pub mod sqlite;
mod url;

use std::{fmt, time::Duration};

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
pub use url::{StoreUrl, open, url_beside_bus};

use crate::Result;

/// The future that a store method returns: boxed, so that the traits are object safe.
pub type Reply<'a, T> = BoxFuture<'a, Result<T>>;

/// The hot path: enqueue, claim, renew, settle. Claims and settlements are batched.
pub trait TaskQueue: Send + Sync {
    /// Stores new tasks and returns, in the order given, when they are durable. A task whose id exists, or whose
    /// unique key is held by an unfinished task of the same name, is not stored again: the answer carries the id of
    /// the existing task.
    fn enqueue(&self, tasks: Vec<NewTask>) -> Reply<'_, Vec<Enqueued>>;

    /// Stores the kinds that a worker runs with their options, for calls by name. A kind is known while a live
    /// worker has registered it and for [`patience`](TaskQuery::patience) after that.
    fn publish(&self, kinds: Vec<TaskKind>) -> Reply<'_, ()>;

    /// Registers a worker and starts its lease. The id is new for each registration.
    fn register(&self, worker: WorkerInfo) -> Reply<'_, ()>;

    /// The lease duration: a worker without heartbeats keeps its tasks for this time. Heartbeats should be several
    /// times as frequent.
    fn lease(&self) -> Duration;

    /// Extends the worker's lease, which covers all tasks that it holds, and returns those of them that were
    /// cancelled.
    fn renew(&self, worker: Uuid) -> Reply<'_, Renewal>;

    /// Removes the worker and releases the tasks that it still holds without counting an attempt. Returns their
    /// number.
    fn retire(&self, worker: Uuid) -> Reply<'_, u64>;

    /// Leases due tasks of the named kinds and queues to a registered worker: highest priority first, then oldest
    /// due. Returns at most `limit` tasks, and perhaps fewer than are due: a worker that got some claims again.
    /// Fails with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) when the worker's lease has expired.
    fn claim(&self, claim: Claim) -> Reply<'_, Claimed>;

    /// Records the ends of leased tasks, and returns an answer for each in the order given. A record that the store
    /// cannot keep fails alone, with [`ErrorKind::Refused`](crate::ErrorKind::Refused), and the store marks its
    /// task as dead.
    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Vec<Result<Settled>>>;

    /// Performs the housekeeping that each worker calls every second: puts tasks of dead workers back in their
    /// queues, ends expired tasks, deletes records whose time to live is over, and dead-letters due tasks whose
    /// kind no worker has registered for too long.
    fn maintain(&self) -> Reply<'_, Maintenance>;

    /// The notifications of changes: this process's changes are notified at once, other processes' changes as soon
    /// as the store notices them.
    fn notifier(&self) -> &Notifier;
}

/// The operator's commands for tasks.
pub trait TaskControl: Send + Sync {
    /// Cancels a waiting task at once, marks a running one to be stopped. Returns the state before the call.
    fn cancel(&self, id: Uuid) -> Reply<'_, State>;

    /// Stops claims from a queue (`true`) or resumes them; persists across restarts.
    fn pause(&self, queue: &str, paused: bool) -> Reply<'_, ()>;

    /// Deletes the waiting tasks of these queues (of all queues when empty); running tasks continue. Returns their
    /// number.
    fn purge(&self, queues: &[String]) -> Reply<'_, u64>;

    /// Puts dead tasks back in their queue with counters at zero: the given ones, or all when empty. Returns their
    /// number; a task whose unique key is held by another unfinished task stays dead.
    fn replay(&self, ids: &[Uuid]) -> Reply<'_, u64>;

    /// Deletes dead tasks: the given ones, or all when empty. Returns their number.
    fn drop_dead(&self, ids: &[Uuid]) -> Reply<'_, u64>;
}

/// Read access for clients and operators. Reads never wait for writers.
pub trait TaskQuery: Send + Sync {
    /// The whole record of one task, or `None` when unknown or past its time to live.
    fn get(&self, id: Uuid) -> Reply<'_, Option<TaskRecord>>;

    /// Returns those of these tasks that have ended (or are unknown).
    fn ended(&self, ids: Vec<Uuid>) -> Reply<'_, Vec<Uuid>>;

    /// Returns tasks by filter, newest first; scheduled ones by due time.
    fn list(&self, filter: Filter) -> Reply<'_, Vec<TaskRecord>>;

    /// Returns counts by queue and state, and the paused queues. Reads every finished record, so use it only for
    /// answers to people.
    fn stats(&self) -> Reply<'_, Vec<QueueStats>>;

    /// The same without the finished tasks, except dead ones: its cost does not depend on the number of finished
    /// records.
    fn depths(&self) -> Reply<'_, Vec<QueueStats>>;

    /// Returns due tasks by queue and kind, with the number of workers that claim them.
    fn waiting(&self) -> Reply<'_, Vec<Waiting>>;

    /// Returns the known task kinds, by name.
    fn kinds(&self) -> Reply<'_, Vec<TaskKind>>;

    /// The time that a due task waits for a worker that has registered its kind, before it becomes dead.
    fn patience(&self) -> Duration;

    /// Returns live workers with their last heartbeat.
    fn workers(&self) -> Reply<'_, Vec<WorkerRecord>>;
}

/// Access to the stored schedules; each firing is recorded under the unique key (schedule, nominal time).
pub trait ScheduleStore: Send + Sync {
    /// Adds or replaces a schedule by name. An unchanged schedule keeps its next time.
    fn put_schedule(&self, schedule: ScheduleRecord) -> Reply<'_, ()>;

    /// Removes a schedule; `false` when it does not exist.
    fn remove_schedule(&self, name: &str) -> Reply<'_, bool>;

    /// Returns all schedules by name.
    fn schedules(&self) -> Reply<'_, Vec<ScheduleRecord>>;

    /// Enqueues firings and advances their schedules, in one transaction each; returns the number of tasks that
    /// each has enqueued. It is zero when another process advanced or changed the schedule meanwhile, when the
    /// nominal time has fired before, or when an unfinished task holds the unique key.
    fn fire(&self, firings: Vec<Firing>) -> Reply<'_, Vec<u64>>;
}

/// All operations that clients, workers and schedulers need from a store.
pub trait TaskStore: TaskQueue + TaskControl + TaskQuery + ScheduleStore + fmt::Debug {}

impl<S: TaskQueue + TaskControl + TaskQuery + ScheduleStore + fmt::Debug> TaskStore for S {}

/// The current time in whole milliseconds, the unit of stores.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Rounds up to a millisecond, so that no task is ever due early.
pub(crate) fn ceil_ms(at: Timestamp) -> i64 {
    let ms = at.as_millisecond();
    if Timestamp::from_millisecond(ms).is_ok_and(|floor| floor < at) { ms + 1 } else { ms }
}

pub(crate) fn from_ms(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}
