//! Builds one call: arguments, Celery's options, and `.await` to enqueue it.

use std::{future::IntoFuture, marker::PhantomData, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use uuid::Uuid;

use super::{AsyncResult, TaskClient};
use crate::{
    Result,
    store::{NewTask, unique_key},
    task::{Task, TaskContext, TaskOptions, encode_args},
};

/// A call of a task, created by `task.delay(..)` or `task.apply_async((..))`; awaiting it enqueues the task and
/// returns when the store has stored it.
#[must_use = "a call is enqueued when it is awaited"]
#[derive(Debug)]
pub struct Call<T: Task> {
    task: Result<NewTask>,
    /// The time after enqueue at which the task expires. Schedules need it, because they enqueue later than the
    /// call is created.
    expires_after: Option<Duration>,
    client: Option<TaskClient>,
    kind: PhantomData<fn() -> T>,
}

impl<T: Task> Call<T> {
    /// Creates a call with the task's own options.
    pub fn new(args: T::Args) -> Self {
        let task = encode_args(T::PARAMETERS, &args);
        let task = task.map(|args| NewTask::from_options(T::NAME, args, &T::OPTIONS));
        Self { task, expires_after: T::OPTIONS.expires, client: None, kind: PhantomData }
    }

    fn set(mut self, change: impl FnOnce(&mut NewTask)) -> Self {
        if let Ok(task) = &mut self.task {
            change(task);
        }
        self
    }

    /// Sets the client to enqueue with, instead of the installed one.
    pub fn on(mut self, client: &TaskClient) -> Self {
        self.client = Some(client.clone());
        self
    }

    /// Delays the run by at least this time.
    pub fn countdown(self, wait: Duration) -> Self {
        let due = Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        self.set(|task| task.due = Some(due))
    }

    /// Sets the earliest time of the run; a time in the past means at once.
    pub fn eta(self, at: Timestamp) -> Self {
        self.set(|task| task.due = Some(at))
    }

    /// Lets the task expire if no worker has started it after this time. It applies to the first start only:
    /// retries and a run after the worker's crash may come later. (Celery checks `expires` at every delivery,
    /// retries included.)
    pub fn expires(self, within: Duration) -> Self {
        let at = Timestamp::now().saturating_add(within).unwrap_or(Timestamp::MAX);
        Self { expires_after: Some(within), ..self.expires_at(at) }
    }

    /// Lets the task expire if no worker has started it by this time. It applies to the first start only, as with
    /// [`expires`](Self::expires).
    pub fn expires_at(self, at: Timestamp) -> Self {
        Self { expires_after: None, ..self.set(|task| task.expires = Some(at)) }
    }

    /// Sets the queue.
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.set(|task| task.queue = queue.into())
    }

    /// Sets the priority: higher runs sooner.
    pub fn priority(self, priority: i32) -> Self {
        self.set(|task| task.priority = priority)
    }

    /// Sets the maximum number of failures that are retried.
    pub fn max_retries(self, retries: u32) -> Self {
        self.set(|task| task.max_retries = retries)
    }

    /// Sets the task's id. A second enqueue with the same id creates no second task.
    pub fn id(self, id: Uuid) -> Self {
        self.set(|task| task.id = id)
    }

    /// Sets a unique key: while an unfinished task of this kind holds the key, the call enqueues nothing and its
    /// result is that task's.
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.set(|task| task.unique = Some(key.into()))
    }

    /// Adds a header that the function can read from its context.
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(|task| drop(task.headers.insert(name.into(), value.into())))
    }

    /// Keeps the record with its result for this time after the end; a hundred years at most.
    pub fn result_ttl(self, ttl: Duration) -> Self {
        self.set(|task| task.result_ttl = ttl)
    }

    /// Returns the task to be stored, for [`TaskClient::send`] with many at once, or for a schedule.
    ///
    /// # Errors
    /// When the arguments cannot be written as JSON.
    pub fn into_task(self) -> Result<NewTask> {
        self.task
    }

    /// Returns the task for a schedule, and the time after each enqueue at which it expires.
    pub(crate) fn into_plan(self) -> Result<(NewTask, Option<Duration>)> {
        let mut task = self.task?;
        if self.expires_after.is_some() {
            task.expires = None;
        }
        Ok((task, self.expires_after))
    }
}

impl<T: Task> IntoFuture for Call<T> {
    type Output = Result<AsyncResult<T::Output>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let client = self.client.map_or_else(TaskClient::current, Ok)?;
            let sent = client.send(vec![self.task?]).await?;
            Ok(sent.into_iter().next().expect("one task, one answer").cast())
        })
    }
}

impl NewTask {
    /// Builds a task by name with JSON arguments and the default options, for callers that do not have its code.
    pub fn named(name: impl Into<String>, args: impl Into<String>) -> Self {
        let mut task = Self::from_options("", args.into(), &TaskOptions::DEFAULT);
        task.name = name.into();
        task
    }

    fn from_options(name: &str, args: String, options: &TaskOptions) -> Self {
        let id = Uuid::now_v7();
        let unique = options.unique.then(|| unique_key(&args));
        let expires =
            options.expires.map(|after| Timestamp::now().saturating_add(after).unwrap_or(Timestamp::MAX));
        let mut task = Self {
            id,
            name: name.to_owned(),
            queue: options.queue.to_owned(),
            args,
            kwargs: None,
            priority: options.priority,
            due: None,
            expires,
            max_retries: options.retries,
            max_crashes: options.crashes,
            unique,
            headers: Default::default(),
            result_ttl: options.result_ttl,
        };
        // A task that another task enqueues is its child and gets its correlation and trace.
        if let Some(parent) = TaskContext::current() {
            task.headers.insert("parent_id".to_owned(), parent.id().to_string());
            for name in ["correlation_id", "traceparent", "tracestate"] {
                if let Some(value) = parent.header(name) {
                    task.headers.insert(name.to_owned(), value.to_owned());
                }
            }
            task.headers.entry("correlation_id".to_owned()).or_insert_with(|| parent.id().to_string());
        }
        task
    }
}
