//! Runs a task that fails once and is retried, and cancels a task before its time.
//!
//! ```console
//! $ cargo run -p task-queue --example task
//! $ cargo run -p task-queue --example task -- sqlite:tasks.db
//! ```
//!
//! Without an argument the tasks are in a temporary SQLite file.

use std::time::Duration;

use task_queue::{State, TaskClient, TaskContext, TaskError, Worker, store, task};
use tokio::sync::oneshot;

/// A task is an async function. `State` and `TaskContext` come from the worker, the other parameters are stored with
/// the task. When the function returns an error, the task runs again later.
#[task(queue = "mail", retries = 3, backoff = "100ms")]
async fn send_receipt(
    State(shop): State<String>,
    run: TaskContext,
    order_id: u64,
) -> Result<String, TaskError> {
    if run.attempt() == 1 {
        return Err("the mail server does not answer".into());
    }
    Ok(format!("{shop} sent the receipt of order {order_id} in attempt {}", run.attempt()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let store = store::open(&std::env::args().nth(1).unwrap_or(file)).await?;

    // `delay` enqueues through the installed client. A program that only enqueues needs no worker.
    TaskClient::new(store.clone()).install();
    let worker = Worker::new(store).register(send_receipt).with_state("The tea shop".to_owned());
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    // Both tasks are stored when the `.await` returns. They survive the end of every process.
    let receipt = send_receipt.delay(7).await?;
    let later = send_receipt.delay(8).countdown(Duration::from_secs(3600)).priority(3).await?;

    let text = receipt.get(Duration::from_secs(20)).await?;
    assert_eq!(text, "The tea shop sent the receipt of order 7 in attempt 2");
    println!("{text}");

    later.cancel().await?;
    println!("the other task is {:?}", later.state().await?);

    drop(stop); // the worker finishes the running tasks
    Ok(worker.await??)
}
