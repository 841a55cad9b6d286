//! A task queue with a scheduler: the role of Celery, built on [apalis](https://docs.rs/apalis) and an SQLite
//! store.
//!
//! # A task
//! ```
//! use std::time::Duration;
//! use task_queue::{Beat, Schedule, State, TaskClient, TaskContext, TaskError, Worker, store, task};
//!
//! /// `#[task]` makes a plain async function a task of the same name. `State<T>` and `TaskContext` come from the
//! /// worker; the other parameters are its arguments, stored as JSON.
//! #[task(queue = "email", retries = 5, backoff = "2s", timeout = "30s")]
//! async fn send_receipt(State(from): State<String>, context: TaskContext, order: u64) -> Result<String, TaskError> {
//!     if order == 0 {
//!         return Err(TaskError::permanent("there is no order 0")); // dead letter at once
//!     }
//!     Ok(format!("{from}: order {order}, attempt {}", context.attempt())) // another error would be retried
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> task_queue::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let url = &format!("sqlite:{}", folder.path().join("tasks.db").display());
//! let store = store::open(url).await?; // "sqlite:./tasks.db"
//! TaskClient::new(store.clone()).install(); // the client that `.delay()` uses in this whole process
//!
//! let worker = Worker::new(store.clone()).register(send_receipt).with_state("shop".to_owned()).concurrency(4);
//! let beat = Beat::new(store).schedule(
//!     Schedule::cron("reminder", "0 9 * * mon-fri")?.zone("Europe/Berlin")?.call(send_receipt.delay(7))?,
//! );
//! tokio::spawn(worker.run_until(std::future::pending()));
//! tokio::spawn(beat.run_until(std::future::pending()));
//!
//! let receipt = send_receipt.delay(7).await?; // returns when the store holds the task
//! assert_eq!(receipt.get(Duration::from_secs(10)).await?, "shop: order 7, attempt 1");
//! send_receipt.apply_async((8,)).countdown(Duration::from_secs(60)).priority(5).unique("order-8").await?;
//! # Ok(())
//! # }
//! ```
//! A program with its own tasks gets a command line with Celery's subcommands from [`command::main`].
//!
//! # Guarantees
//! - **The store is the record.** An enqueued task, a retry, a result and a schedule survive the crash of every
//!   process, and with the default durability also a power cut. Notifications between processes only reduce
//!   latency.
//! - **At least once, never twice at a time.** A worker leases a task under a fencing token. A worker that is
//!   killed or sends no heartbeat loses its lease within 8 s and its tasks run again; the store refuses every later
//!   settlement from it. Make tasks idempotent: a task runs again when its worker is killed after the task's effect
//!   and before the store records the task's end.
//! - **A waiting retry occupies no slot.** The store keeps it with its due time: exponential backoff, full jitter.
//!   Errors and crashes are counted separately; a task during which five workers crashed becomes a dead letter,
//!   however many retries are left.
//! - **No task is dropped silently.** A task whose arguments do not fit, whose retries are used up or whose error
//!   is permanent becomes *dead* (a dead letter), with its newest 50 attempts and their errors (4 KiB each), until
//!   it is replayed or dropped (30 days). When the store refuses a record, it marks that task as dead with the
//!   reason, and the other tasks continue.
//! - **A worker claims only the kinds that it has registered,** in the queues that it serves. A due task of a kind
//!   that no worker has registered waits for such a worker, and becomes dead after 7 days (`patience`).
//! - **Expiry applies to the first start only.** A task that has started is retried, and runs again after a
//!   worker's crash, even when `expires` has passed meanwhile. (Celery checks `expires` at every delivery, retries
//!   included.)
//! - **No task runs early,** to the millisecond, and each nominal time of a schedule fires once, however many
//!   schedulers run.
//!
//! # Metrics
//! Reported through the `metrics` crate; each end is counted after the store has recorded it: counters
//! `tasks_enqueued`, `tasks_started`, `tasks_succeeded`, `tasks_failed`, `tasks_retried`, `tasks_dead`,
//! `tasks_fenced`, `schedules_fired`; histograms `task_wait_seconds`, `task_runtime_seconds`; gauge
//! `task_queue_depth` by queue and state, once a minute.

mod beat;
mod bounds;
mod client;
pub mod command;
mod error;
pub mod guide;
pub mod store;
mod task;
mod thread;
mod worker;

pub use beat::{Beat, CronExpression, Missed, Schedule, Timing};
pub use client::{AsyncResult, Call, TaskClient};
pub use error::{Error, ErrorKind, Result};
/// Makes an async function a task kind of the same name.
///
/// Options, with their defaults in [`TaskOptions`]: `name`, `queue`, `retries`, `backoff`, `backoff_max`,
/// `timeout`, `priority`, `crashes`, `unique`, `expires`, `result_ttl`; durations are written `"500ms"`, `"30s"`,
/// `"5m"`, `"2h"`, `"1d"`. Parameters of type [`State`] and [`TaskContext`], and parameters marked `#[extract]`,
/// come from the running task; all others are arguments. `f.delay(..)` and `f.apply_async((..))` enqueue,
/// `f::call(..)` is the plain function.
pub use event_macros::task;
pub use task::{
    Backoff, Disposition, FromTask, State, States, Task, TaskContext, TaskError, TaskOptions, TaskReturn,
};
pub use worker::Worker;
