//! Defines tasks: named async functions with typed arguments, options and a context.

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

/// A task kind. [`#[task]`](crate::task) generates it; the function's name is its value: `send_receipt.delay(id)`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    note = "put `#[task]` on the async function and pass its name without `()`"
)]
pub trait Task: Copy + Send + Sync + 'static {
    /// The name that identifies it in stores and other processes.
    const NAME: &'static str;
    /// The names of its arguments, in order.
    const PARAMETERS: &'static [&'static str];
    /// Its options.
    const OPTIONS: TaskOptions;
    /// The tuple of its arguments.
    type Args: Serialize + DeserializeOwned + Send + 'static;
    /// The type of its result.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Checks at start-up that the worker has everything that the task needs, such as a [`State`].
    ///
    /// # Errors
    /// A text that names what is missing.
    fn check(states: &States) -> Result<(), String>;

    /// Runs it once.
    fn run(
        context: TaskContext,
        args: Self::Args,
    ) -> impl Future<Output = Result<Self::Output, TaskError>> + Send;
}

/// The return type of a `#[task]` function: `Result<T, E>` with a `T` that serde can store and any error `E`.
#[diagnostic::on_unimplemented(
    message = "a task returns `Result<T, E>`, not `{Self}`",
    note = "`T` is stored as the result, so it implements `Serialize` and `DeserializeOwned`",
    note = "`E` is any `std::error::Error`, a `String`, or `TaskError` to choose what follows"
)]
pub trait TaskReturn {
    /// The stored result.
    type Output;

    /// Converts the function's error into the form that workers handle.
    ///
    /// # Errors
    /// Returns the function's error.
    fn into_outcome(self) -> Result<Self::Output, TaskError>;
}

impl<T: Serialize + DeserializeOwned, E: Into<TaskError>> TaskReturn for Result<T, E> {
    type Output = T;

    fn into_outcome(self) -> Result<T, TaskError> {
        self.map_err(Into::into)
    }
}
