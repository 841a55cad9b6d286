//! Tasks, worker, scheduler and results on apalis.

mod beat;
mod client;
pub mod command;
mod error;
mod span;
pub mod store;
mod task;
mod thread;
mod worker;

pub use beat::{Beat, CronExpression, Missed, Schedule, Timing};
pub use client::{AsyncResult, Call, TaskClient};
pub use error::{Error, ErrorKind, Result};
pub use event_macros::task;
pub use task::{
    Backoff, Disposition, FromTask, State, States, Task, TaskContext, TaskError, TaskOptions, TaskReturn,
};
pub use worker::Worker;
