//! Tasks, worker, scheduler and results on apalis.

mod client;
mod error;
mod span;
pub mod store;
mod task;
mod thread;
mod worker;

pub use client::{AsyncResult, Call, TaskClient};
pub use error::{Error, ErrorKind, Result};
pub use event_macros::task;
pub use task::{
    Backoff, Disposition, FromTask, State, States, Task, TaskContext, TaskError, TaskOptions, TaskReturn,
};
pub use worker::Worker;
