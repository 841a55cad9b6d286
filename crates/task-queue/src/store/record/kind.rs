//! Defines task kinds as workers publish them, and the counts of due tasks by kind.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{NewTask, json::compact};
use crate::task::{TaskOptions, place};

/// A task kind that a worker has registered, with the default options of its calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskKind {
    /// The registered name.
    pub name: String,
    /// The names of its arguments, in order.
    pub parameters: Vec<String>,
    /// The queue of its tasks.
    pub queue: String,
    /// The maximum number of failures that are retried.
    pub retries: u32,
    /// Higher runs sooner.
    pub priority: i32,
    /// The number of worker crashes during a task at which it becomes dead.
    pub crashes: u32,
    /// Whether at most one unfinished task with the same arguments may exist.
    pub unique: bool,
    /// The time after enqueue at which a task expires if no worker has started it.
    #[serde(default, with = "settings::duration::optional")]
    pub expires: Option<Duration>,
    /// The time that the record is kept after the end.
    #[serde(with = "settings::duration::text")]
    pub result_ttl: Duration,
}

impl TaskKind {
    pub(crate) fn new(name: &str, parameters: &[&str], options: &TaskOptions) -> Self {
        Self {
            name: name.to_owned(),
            parameters: parameters.iter().map(ToString::to_string).collect(),
            queue: options.queue.to_owned(),
            retries: options.retries,
            priority: options.priority,
            crashes: options.crashes,
            unique: options.unique,
            expires: options.expires.map(|after| after.min(crate::bounds::LONGEST)),
            result_ttl: options.result_ttl.min(crate::bounds::LONGEST),
        }
    }

    /// Builds a task of this kind with its options, for callers that do not have its code.
    pub fn task(&self, args: &str, kwargs: Option<&str>) -> NewTask {
        let mut task = NewTask::named(&self.name, args);
        task.kwargs = kwargs.map(str::to_owned);
        task.queue.clone_from(&self.queue);
        task.priority = self.priority;
        task.max_retries = self.retries;
        task.max_crashes = self.crashes;
        task.result_ttl = self.result_ttl;
        task.expires =
            self.expires.map(|after| Timestamp::now().saturating_add(after).unwrap_or(Timestamp::MAX));
        if self.unique {
            let names: Vec<&str> = self.parameters.iter().map(String::as_str).collect();
            // The worker reports arguments that do not fit; until then the key is computed from the text as given.
            let placed = place(&names, args, kwargs).ok().flatten();
            task.unique = Some(unique_key(&compact(placed.as_deref().unwrap_or(args))));
        }
        task
    }
}

/// Returns the unique key of a task that is unique by its arguments.
pub(crate) fn unique_key(args: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, args.as_bytes()).to_string()
}

/// The due tasks of one kind in one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The queue.
    pub queue: String,
    /// The task kind.
    pub name: String,
    /// The number of tasks that are due and not yet started.
    pub tasks: u64,
    /// The due time of the oldest of them.
    pub oldest: Timestamp,
    /// Live workers that serve the queue and have registered the kind.
    pub workers: u64,
    /// Whether a worker has registered the kind: a live worker, or another one within the patience.
    pub known: bool,
}
