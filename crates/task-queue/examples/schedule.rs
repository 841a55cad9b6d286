//! Runs a task on a schedule: every 200 milliseconds, and by a cron expression.
//!
//! ```console
//! $ cargo run -p task-queue --example schedule
//! $ cargo run -p task-queue --example schedule -- sqlite:tasks.db
//! ```
//!
//! Without an argument schedules and tasks are in a temporary SQLite file.

use std::time::Duration;

use task_queue::{Beat, Schedule, State, TaskContext, TaskError, Worker, store, task};
use tokio::sync::{mpsc, watch};

/// The header `nominal` contains the scheduled time.
#[task]
async fn clean_up(
    State(times): State<mpsc::UnboundedSender<String>>,
    run: TaskContext,
) -> Result<(), TaskError> {
    times.send(run.header("nominal").unwrap_or("none").to_owned())?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let store = store::open(&std::env::args().nth(1).unwrap_or(file)).await?;
    let (times, mut all_times) = mpsc::unbounded_channel::<String>();
    let (stop, stopped) = watch::channel(false);
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };

    // The beat enqueues a task at each time of a schedule; a worker runs it. Several beats may run on one store: each
    // time is enqueued once.
    let often = Schedule::every("often", Duration::from_millis(200))?.call(clean_up.delay())?;
    let at_night =
        Schedule::cron("at-night", "0 2 * * mon-fri")?.zone("Europe/Berlin")?.call(clean_up.delay())?;
    let beat = Beat::new(store.clone()).schedule(often).schedule(at_night);
    let beat = tokio::spawn(beat.run_until(until_stopped()));
    let worker = Worker::new(store.clone()).register(clean_up).with_state(times);
    let worker = tokio::spawn(worker.run_until(until_stopped()));

    let first = all_times.recv().await.ok_or("the worker stopped")?;
    let second = all_times.recv().await.ok_or("the worker stopped")?;
    assert_ne!(first, second);
    println!("ran for {first} and {second}");
    for schedule in store.schedules().await? {
        println!(
            "{}: {}, next {}",
            schedule.name,
            schedule.timing,
            schedule.next.ok_or("it has no next time")?
        );
    }

    store.remove_schedule("often").await?; // a schedule stays in the store until it is removed
    stop.send(true)?;
    beat.await??;
    Ok(worker.await??)
}
