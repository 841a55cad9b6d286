//! What a task is: a named async function with typed arguments, its options, and what it is told when it runs.

mod arguments;
mod backoff;
pub(crate) mod context;
mod failure;
mod options;

use serde::{Serialize, de::DeserializeOwned};

pub use backoff::Backoff;
pub use context::{FromTask, State, States, TaskContext};
pub use failure::{Disposition, TaskError};
pub use options::TaskOptions;

pub(crate) use arguments::{by_name, decode, encode, encode_args, place};

/// A task kind. Written by [`#[task]`](crate::task); the function's name is its value: `send_receipt.delay(id)`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    note = "put `#[task]` on the async function and pass its name without `()`"
)]
pub trait Task: Copy + Send + Sync + 'static {
    /// The name that stores and other processes know it by.
    const NAME: &'static str;
    /// The names of its arguments, in order.
    const PARAMETERS: &'static [&'static str];
    /// Its options.
    const OPTIONS: TaskOptions;
    /// A tuple of its arguments.
    type Args: Serialize + DeserializeOwned + Send + 'static;
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Says at start-up what the worker lacks to run it, such as a [`State`].
    ///
    /// # Errors
    /// What is missing.
    fn check(states: &States) -> Result<(), String>;

    /// Runs it once.
    fn run(
        context: TaskContext,
        args: Self::Args,
    ) -> impl Future<Output = Result<Self::Output, TaskError>> + Send;
}

/// What a `#[task]` function returns: `Result<T, E>` with a `T` that serde stores and an `E` that says why not.
#[diagnostic::on_unimplemented(
    message = "a task returns `Result<T, E>`, not `{Self}`",
    note = "`T` is stored as the result, so it implements `Serialize` and `DeserializeOwned`",
    note = "`E` is any `std::error::Error`, a `String`, or `TaskError` to say how to go on"
)]
pub trait TaskReturn {
    /// The stored result.
    type Output;

    /// The outcome with its error in the one form that workers judge.
    ///
    /// # Errors
    /// The function's own.
    fn into_outcome(self) -> Result<Self::Output, TaskError>;
}

impl<T: Serialize + DeserializeOwned, E: Into<TaskError>> TaskReturn for Result<T, E> {
    type Output = T;

    fn into_outcome(self) -> Result<T, TaskError> {
        self.map_err(Into::into)
    }
}
