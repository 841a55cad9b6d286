//! Gives a running task its context: its id, its deadline, and the worker's state.

use std::{
    any::{Any, TypeId, type_name},
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Deref,
    sync::Arc,
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::TaskError;
use crate::client::TaskClient;

tokio::task_local! {
    /// The current run, so that a task that it enqueues carries the same correlation.
    static CURRENT: TaskContext;
}

/// Values that task functions take with [`State`], one of each type.
#[derive(Clone, Default)]
pub struct States {
    values: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl States {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), Arc::new(value));
    }

    fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.values.get(&TypeId::of::<T>())?.clone().downcast().ok()
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").field("types", &self.values.len()).finish()
    }
}

/// The current run of a task function. Cheap to clone; take it as an argument of the function.
#[derive(Clone)]
pub struct TaskContext {
    pub(crate) inner: Arc<Run>,
}

/// The data of one run.
pub(crate) struct Run {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) queue: String,
    pub(crate) attempt: u32,
    pub(crate) max_retries: u32,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) worker: String,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) stop: CancellationToken,
    pub(crate) states: Arc<States>,
    pub(crate) client: TaskClient,
}

impl TaskContext {
    /// The task's id; the same in every attempt.
    pub fn id(&self) -> Uuid {
        self.inner.id
    }

    /// The task kind.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The queue it came from.
    pub fn queue(&self) -> &str {
        &self.inner.queue
    }

    /// The number of this attempt, from 1; failures and crashes count, snoozes do not.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// The maximum number of failures that are retried.
    pub fn max_retries(&self) -> u32 {
        self.inner.max_retries
    }

    /// A header of the task, such as `correlation_id` or `traceparent`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers.get(name).map(String::as_str)
    }

    /// All headers.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.inner.headers
    }

    /// The name of the worker it runs on.
    pub fn worker(&self) -> &str {
        &self.inner.worker
    }

    /// The time at which the time limit aborts this attempt.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.inner.deadline
    }

    /// A token that is cancelled when the task is cancelled, when the worker's grace time at shutdown ends, or when
    /// the worker loses its lease. The worker then drops the function's future, so only work on other threads needs
    /// to watch the token. It is also cancelled when the attempt ends with an error.
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// The client of the worker's own store, to enqueue more tasks.
    pub fn client(&self) -> &TaskClient {
        &self.inner.client
    }

    /// The current run of the calling code. `None` outside a task function and in a tokio task that the function
    /// spawned.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `body` as the current run.
    pub(crate) async fn enter<F: Future>(self, body: F) -> F::Output {
        CURRENT.scope(self, body).await
    }
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// A value that a task function can take besides its arguments: [`State`], [`TaskContext`], and, with `#[extract]`
/// before the parameter, any of your types that implements this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a running task",
    note = "`State<T>` and `TaskContext` can; other parameters are arguments unless marked `#[extract]`"
)]
pub trait FromTask: Sized {
    /// Takes the value from the run.
    ///
    /// # Errors
    /// The attempt fails with the returned error.
    fn from_task(context: &TaskContext) -> Result<Self, TaskError>;

    /// Checks at start-up that the worker has the value.
    ///
    /// # Errors
    /// A text for people that names what is missing.
    fn check(states: &States) -> Result<(), String> {
        let _ = states;
        Ok(())
    }
}

impl FromTask for TaskContext {
    fn from_task(context: &TaskContext) -> Result<Self, TaskError> {
        Ok(context.clone())
    }
}

/// A value given to the worker with [`Worker::with_state`](crate::Worker::with_state).
#[derive(Debug, Clone, Copy)]
pub struct State<T>(pub T);

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone + Send + Sync + 'static> FromTask for State<T> {
    fn from_task(context: &TaskContext) -> Result<Self, TaskError> {
        match context.inner.states.get::<T>() {
            Some(value) => Ok(Self(T::clone(&value))),
            None => Err(TaskError::permanent(missing::<T>())),
        }
    }

    fn check(states: &States) -> Result<(), String> {
        states.get::<T>().map(|_| ()).ok_or_else(missing::<T>)
    }
}

fn missing<T>() -> String {
    format!("needs State<{0}>: give the worker one with `.with_state(value)`", type_name::<T>())
}
