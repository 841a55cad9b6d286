//! Runs the scheduler: it enqueues the tasks of the stored schedules, once per nominal time however many schedulers
//! run.
//!
//! There is no leader. Each scheduler reads the schedules, computes the next step of those that are due, and sends
//! it to the store, which applies it only if the schedule is unchanged since it was read: one scheduler succeeds,
//! the others find the step done. A scheduler that crashes leaves no state to take over.

mod cron;
mod missed;
mod schedule;
mod timing;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

pub use cron::CronExpression;
pub use missed::Missed;
pub use schedule::Schedule;
pub use timing::Timing;

use crate::{
    Result,
    store::{Channel, Firing, NewTask, ScheduleRecord, TaskStore},
};

/// The longest interval between two reads of the schedules: a change of the machine's clock is noticed within this
/// time.
const POLL: Duration = Duration::from_secs(5);

/// Fires the schedules of a store. Any number of processes may run one.
///
/// ```no_run
/// # use std::time::Duration;
/// # use task_queue::{task, Beat, Schedule, store};
/// # #[task] async fn send_report(day: u32) -> Result<(), String> { Ok(()) }
/// # async fn run() -> task_queue::Result<()> {
/// let store = store::open("sqlite:./tasks.db").await?;
/// Beat::new(store)
///     .schedule(Schedule::cron("report", "0 2 * * mon-fri")?.zone("Europe/Berlin")?.call(send_report.delay(1))?)
///     .run_until(std::future::pending())
///     .await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a scheduler does nothing until `run_until` is awaited"]
pub struct Beat {
    store: Arc<dyn TaskStore>,
    schedules: Vec<Schedule>,
}

impl Beat {
    /// Creates a scheduler on this store.
    pub fn new(store: Arc<dyn TaskStore>) -> Self {
        Self { store, schedules: Vec::new() }
    }

    /// Stores a schedule at start. An existing schedule with the same plan keeps its next time.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedules.push(schedule);
        self
    }

    /// Fires schedules until `shutdown` completes.
    ///
    /// # Errors
    /// When the store cannot be written at start. Later errors of the store are retried, not returned.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        for schedule in self.schedules {
            self.store.put_schedule(schedule.into_record()).await?;
        }
        tracing::info!("scheduler started");
        let store = self.store;
        let mut changes = store.notifier().watch(Channel::Schedules);
        tokio::pin!(shutdown);
        loop {
            changes.mark_unchanged();
            let wait = match step(&*store).await {
                Ok(next) => next.map_or(POLL, until),
                Err(error) => {
                    tracing::warn!(%error, "scheduling failed, trying again");
                    Duration::from_millis(fastrand::u64(100..1000))
                }
            };
            tokio::select! {
                () = &mut shutdown => {
                    tracing::info!("scheduler stopped");
                    return Ok(());
                }
                _ = tokio::time::timeout(wait.min(POLL), changes.changed()) => {}
            }
        }
    }
}

/// Fires all schedules that are due; returns the time of the next one.
async fn step(store: &dyn TaskStore) -> Result<Option<Timestamp>> {
    let now = Timestamp::now();
    let mut next = None::<Timestamp>;
    for record in store.schedules().await? {
        let Some(due) = record.next else { continue };
        let stepped = match due <= now {
            true => fire(store, &record, due, now).await,
            false => follow_clock(store, &record, due, now).await,
        };
        // One schedule that cannot fire does not stop the others.
        let following = match stepped {
            Ok(following) => following,
            Err(error) => {
                tracing::error!(schedule = record.name, %error, "schedule cannot fire");
                continue;
            }
        };
        next = [next, following].into_iter().flatten().min();
    }
    Ok(next)
}

/// Handles a schedule that is not due. If the clock was set back behind its last firing, its next time is computed
/// again, and nominal times later than now may fire again.
async fn follow_clock(
    store: &dyn TaskStore,
    record: &ScheduleRecord,
    due: Timestamp,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let Some(last) = record.last.filter(|last| *last > now) else { return Ok(Some(due)) };
    let timing: Timing = record.timing.parse()?;
    let tz = timing::zone(&record.tz)?;
    let Some(next) = missed::set_back(&timing, &tz, record.start, (last, due), now) else {
        return Ok(Some(due));
    };
    tracing::warn!(schedule = record.name, %last, %due, %next, "the clock was set back: the schedule uses the new time");
    let firing = Firing {
        schedule: record.name.clone(),
        seen: due,
        timing: record.timing.clone(),
        next: Some(next),
        tasks: Vec::new(),
        set_back: Some(now),
    };
    store.fire(vec![firing]).await?;
    Ok(Some(next))
}

async fn fire(
    store: &dyn TaskStore,
    record: &ScheduleRecord,
    due: Timestamp,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let timing: Timing = record.timing.parse()?;
    let tz = timing::zone(&record.tz)?;
    let missed: Missed = record.missed.parse()?;
    // A schedule is due before its start only after the clock was set back.
    let step = missed::step(&timing, &tz, record.start.min(due), missed, due, now);
    let tasks: Vec<_> = step.fire.into_iter().map(|nominal| (nominal, task(record, nominal))).collect();
    let firing = Firing {
        schedule: record.name.clone(),
        seen: due,
        timing: record.timing.clone(),
        next: step.next,
        tasks,
        set_back: None,
    };
    let fired: u64 = store.fire(vec![firing]).await?.iter().sum();
    if fired > 0 {
        tracing::info!(schedule = record.name, task = record.task, fired, "schedule fired");
        metrics::counter!("schedules_fired", "schedule" => record.name.clone()).increment(fired);
        metrics::counter!("tasks_enqueued", "task" => record.task.clone(), "queue" => record.queue.clone())
            .increment(fired);
    }
    Ok(step.next)
}

fn task(record: &ScheduleRecord, nominal: Timestamp) -> NewTask {
    let mut task = NewTask::named(&record.task, record.args.to_string());
    task.id = Uuid::now_v7();
    task.queue = record.queue.clone();
    task.kwargs = record.kwargs.as_ref().map(ToString::to_string);
    task.priority = record.priority;
    task.max_retries = record.max_retries;
    task.max_crashes = record.max_crashes;
    task.unique.clone_from(&record.unique);
    task.expires =
        record.expires.map(|within| Timestamp::now().saturating_add(within).unwrap_or(Timestamp::MAX));
    task.result_ttl = record.result_ttl;
    task.headers.clone_from(&record.headers);
    task.headers.insert("schedule".to_owned(), record.name.clone());
    task.headers.insert("nominal".to_owned(), nominal.to_string());
    task
}

fn until(at: Timestamp) -> Duration {
    // One millisecond is added, because timers may fire within their last millisecond.
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
        + Duration::from_millis(1)
}
