//! Enqueues tasks: a client of a store, calls with Celery's options, and results awaited through notifications.

mod call;
mod current;
mod result;
mod task_client;
mod waiter;

pub use call::Call;
pub use result::AsyncResult;
pub use task_client::TaskClient;
