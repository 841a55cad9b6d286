//! Collects the observed counts: published, handled and shipped from counters of this process; dead letters, tasks,
//! schedules and logs from their stores. Waits until they match the expected counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_client::Bus;
use event_client::log::ShippingStats;
use event_client::service::{Running, Stats};
use event_client::subject::Pattern;
use event_client::transport::{DeadLetterFilter, Subscribe};
use log_aggregator::Aggregator;
use reference_systems::Expected;
use smol_str::SmolStr;
use task_queue::store::{Filter, State, TaskStore};
use tokio_util::task::AbortOnDropHandle;

use super::counts::Now;
use super::report::Report;
use crate::stack::Stack;

/// The sources of the observed counts.
pub(super) struct Observed {
    bus: Bus,
    tasks: Arc<dyn TaskStore>,
    aggregator: Arc<Aggregator>,
    shipped: Arc<ShippingStats>,
    stats: BTreeMap<SmolStr, Arc<Stats>>,
    published: Published,
    /// Counts of records, dead letters and firings of earlier runs in the same data directory.
    before: Now,
}

/// Counts the broadcast events by subject, without log batches, which continue during the count.
struct Published {
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
    _counting: AbortOnDropHandle<()>,
}

impl Published {
    /// Starts to count.
    async fn watch(bus: &Bus) -> anyhow::Result<Self> {
        let topics = ["files.>", "edge.>"].map(|topic| Pattern::new(topic).expect("a valid pattern"));
        let subscription = bus.subscribe(Subscribe::broadcast(topics)).await?;
        let counts = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let counting = counts.clone();
        let task = tokio::spawn(async move {
            while let Some(delivery) = subscription.next().await {
                let mut counts = counting.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry(delivery.message().subject.to_string()).or_default() += 1;
            }
        });
        Ok(Self { counts, _counting: AbortOnDropHandle::new(task) })
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Observed {
    pub(super) async fn new(stack: &Stack, running: &[Running]) -> anyhow::Result<Self> {
        let mut observed = Self {
            bus: stack.bus.clone(),
            tasks: stack.tasks.clone(),
            aggregator: stack.aggregator.clone(),
            shipped: stack.shipped.clone(),
            stats: running.iter().flat_map(Running::stats).collect(),
            published: Published::watch(&stack.bus).await?,
            before: Now::default(),
        };
        observed.before = observed.start().await?;
        // Use the counts from the start: this process has shipped some records since, which belong to this run.
        observed.before.logs = stack.stored_before.clone();
        Ok(observed)
    }

    /// Returns the counts at the start, read while no schedule fired. A task that a schedule has enqueued counts even
    /// if it still runs: its firing is counted, and it will be done in the later counts.
    async fn start(&self) -> anyhow::Result<Now> {
        loop {
            let now = self.read(true).await?;
            if self.fired().await? == now.fired {
                return Ok(now);
            }
        }
    }

    /// Returns the counts since the start.
    pub(super) async fn now(&self) -> anyhow::Result<Now> {
        let mut now = self.read(false).await?;
        for (map, before) in [
            (&mut now.dead, &self.before.dead),
            (&mut now.tasks, &self.before.tasks),
            (&mut now.fired, &self.before.fired),
            (&mut now.scheduled, &self.before.scheduled),
            (&mut now.logs, &self.before.logs),
        ] {
            map.iter_mut().for_each(|(name, count)| {
                *count -= before.get(name).copied().unwrap_or_default().min(*count)
            });
            map.retain(|_, count| *count > 0);
        }
        Ok(now)
    }

    /// Returns the number of firings of each schedule.
    async fn fired(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let schedules = self.tasks.schedules().await?;
        Ok(schedules.into_iter().map(|schedule| (schedule.name, schedule.fired)).collect())
    }

    /// Reads all counts; with `running`, tasks of schedules that still run are counted as done.
    async fn read(&self, running: bool) -> anyhow::Result<Now> {
        let mut now = Now::default();
        for (group, stats) in &self.stats {
            let counts = stats.counts();
            now.handled.insert(group.to_string(), counts.acked);
            now.retried.insert(group.to_string(), counts.retried);
        }
        now.handled.retain(|_, count| *count > 0);
        now.retried.retain(|_, count| *count > 0);
        for letter in self.bus.admin().dead_letters(DeadLetterFilter::default()).await? {
            *now.dead.entry(letter.group.to_string()).or_default() += 1;
        }
        now.fired = self.fired().await?;
        for task in self.tasks.list(Filter { limit: u32::MAX, ..Filter::default() }).await? {
            let finished =
                matches!(task.state, State::Succeeded) || running && task.headers.contains_key("schedule");
            if !finished {
                now.unfinished += 1;
            } else if let Some(schedule) = task.headers.get("schedule") {
                *now.scheduled.entry(schedule.clone()).or_default() += 1;
            } else {
                *now.tasks.entry(task.name.clone()).or_default() += 1;
            }
        }
        now.published = self.published.counts();
        now.logs = self.aggregator.counts().await?;
        (now.shipped, now.shed) = (self.shipped.sent(), self.shipped.dropped());
        Ok(now)
    }

    /// Compares observed with expected counts, until they match or `bound` has passed; returns the last comparison.
    ///
    /// Schedules still fire and log meanwhile: this waits for a moment at which no task and no log batch is in
    /// flight.
    pub(super) async fn settle(&self, expected: &Expected, bound: Duration) -> anyhow::Result<Report> {
        let end = Instant::now() + bound;
        loop {
            let report = Report::new(expected, &self.now().await?);
            if report.adds_up() || Instant::now() >= end {
                return Ok(report);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
