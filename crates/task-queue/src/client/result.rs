//! Defines the handle of an enqueued task: its state, and its result awaited without polling.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::waiter::Waiter;
use crate::{
    Error, ErrorKind, Result,
    store::{Enqueued, State, TaskRecord},
};

/// The handle of an enqueued task; `T` is its result type.
pub struct AsyncResult<T> {
    waiter: Arc<Waiter>,
    task: Enqueued,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for AsyncResult<T> {
    fn clone(&self) -> Self {
        Self { waiter: self.waiter.clone(), task: self.task, kind: PhantomData }
    }
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncResult").field(&self.task.id).finish()
    }
}

impl<T> AsyncResult<T> {
    pub(super) fn new(waiter: Arc<Waiter>, task: Enqueued) -> Self {
        Self { waiter, task, kind: PhantomData }
    }

    /// Converts the handle to another result type.
    pub fn cast<U>(self) -> AsyncResult<U> {
        AsyncResult { waiter: self.waiter, task: self.task, kind: PhantomData }
    }

    /// The task's id.
    pub fn id(&self) -> Uuid {
        self.task.id
    }

    /// Whether a task with this id or unique key existed already; then this is the handle of that task.
    pub fn is_duplicate(&self) -> bool {
        self.task.duplicate
    }

    /// The task's whole record.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the id is unknown or the record is past its time to live.
    pub async fn record(&self) -> Result<TaskRecord> {
        self.waiter.store().get(self.id()).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("task {} is unknown or its result has expired", self.id()),
            )
        })
    }

    /// The task's current state.
    ///
    /// # Errors
    /// The errors of [`record`](Self::record).
    pub async fn state(&self) -> Result<State> {
        Ok(self.record().await?.state)
    }

    /// Cancels the task if it waits, stops it if it runs. Returns the state before the call.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the id is unknown.
    pub async fn cancel(&self) -> Result<State> {
        self.waiter.store().cancel(self.id()).await
    }

    /// Waits for the end of the task, in whatever state, and returns its record.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when it has not ended within `timeout`; the task continues.
    pub async fn wait(&self, timeout: Duration) -> Result<TaskRecord> {
        let text =
            || format!("task {} has not ended within {}", self.id(), settings::duration::format(timeout));
        match tokio::time::timeout(timeout, self.waiter.wait(self.id())).await {
            Ok(ended) => ended?,
            Err(_) => return Err(Error::new(ErrorKind::Timeout, text())),
        }
        self.record().await
    }
}

impl<T: DeserializeOwned> AsyncResult<T> {
    /// Waits up to `timeout` for the end of the task and returns its result.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) · [`Failed`](ErrorKind::Failed) with the task's last error ·
    /// [`Cancelled`](ErrorKind::Cancelled) · [`Expired`](ErrorKind::Expired) ·
    /// [`TooLarge`](ErrorKind::TooLarge) when it succeeded with a result above the store's cap ·
    /// [`Invalid`](ErrorKind::Invalid) when the result is of another type.
    pub async fn get(&self, timeout: Duration) -> Result<T> {
        let record = self.wait(timeout).await?;
        let id = record.id;
        let error = record.error.unwrap_or_default();
        let fail =
            |kind, what: &str| Err(Error::new(kind, format!("task {} {id} {what}: {error}", record.name)));
        match (record.state, record.result) {
            (State::Succeeded, Some(result)) => serde_json::from_str(result.as_str()).map_err(|error| {
                Error::invalid(format!("the result of task {} {id} is of another type", record.name))
                    .because(error)
            }),
            (State::Succeeded, None) => fail(ErrorKind::TooLarge, "has no stored result"),
            (State::Cancelled, _) => fail(ErrorKind::Cancelled, "was cancelled"),
            (State::Expired, _) => fail(ErrorKind::Expired, "expired"),
            (State::Dead, _) => fail(ErrorKind::Failed, "failed"),
            // A replay between the end and the read of the record queued the task again.
            _ => fail(ErrorKind::Timeout, "was replayed and runs again"),
        }
    }
}
