//! Keeps the task kinds that a worker can run, by name.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use crate::{
    Error, ErrorKind, Result,
    store::{Leased, TaskKind},
    task::{States, Task, TaskContext, TaskError, TaskOptions, decode, encode},
};

/// A run with decoded arguments that needs only its context.
pub(super) type Prepared =
    Box<dyn FnOnce(TaskContext) -> BoxFuture<'static, Result<String, TaskError>> + Send>;

struct Registered {
    options: TaskOptions,
    parameters: &'static [&'static str],
    check: fn(&States) -> Result<(), String>,
    prepare: fn(&Leased) -> Result<Prepared>,
}

/// The task kinds that a worker can run.
#[derive(Default)]
pub(super) struct Registry {
    entries: BTreeMap<&'static str, Registered>,
    twice: Vec<&'static str>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

impl Registry {
    pub(super) fn add<T: Task>(&mut self, _: T) {
        let entry = Registered {
            options: T::OPTIONS,
            parameters: T::PARAMETERS,
            check: T::check,
            prepare: prepare::<T>,
        };
        if self.entries.insert(T::NAME, entry).is_some() {
            self.twice.push(T::NAME);
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.entries.keys().map(|name| (*name).to_owned()).collect()
    }

    /// Returns the description of each kind, which the worker publishes in the store.
    pub(super) fn kinds(&self) -> Vec<TaskKind> {
        let kind =
            |(name, entry): (&&str, &Registered)| TaskKind::new(name, entry.parameters, &entry.options);
        self.entries.iter().map(kind).collect()
    }

    /// The queues of the registered tasks, and `default`.
    pub(super) fn queues(&self) -> Vec<String> {
        let mut queues: Vec<_> = self.entries.values().map(|entry| entry.options.queue.to_owned()).collect();
        queues.push(TaskOptions::DEFAULT.queue.to_owned());
        queues.sort();
        queues.dedup();
        queues
    }

    /// Checks the registered tasks before the first claim. Fails when a name is registered twice or a task lacks a
    /// state.
    pub(super) fn check(&self, states: &States) -> Result<()> {
        if let Some(name) = self.twice.first() {
            let text = format!("two tasks are registered as `{name}`: name one with #[task(name = \"...\")]");
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        for (name, entry) in &self.entries {
            (entry.check)(states).map_err(|missing| {
                Error::new(ErrorKind::NotConfigured, format!("task `{name}` {missing}"))
            })?;
        }
        Ok(())
    }

    pub(super) fn options(&self, name: &str) -> TaskOptions {
        self.entries.get(name).map_or(TaskOptions::DEFAULT, |entry| entry.options)
    }

    /// Decodes the arguments of a leased task.
    ///
    /// # Errors
    /// Fails when the kind is not registered or the arguments do not fit; the text names the misfit.
    pub(super) fn prepare(&self, lease: &Leased) -> Result<Prepared> {
        let unknown = || Error::invalid(format!("task `{}` is not registered here", lease.name));
        let entry = self.entries.get(lease.name.as_str()).ok_or_else(unknown)?;
        (entry.prepare)(lease)
    }
}

fn prepare<T: Task>(lease: &Leased) -> Result<Prepared> {
    let args = decode::<T::Args>(T::PARAMETERS, &lease.args, lease.kwargs.as_deref())?;
    Ok(Box::new(move |context| {
        Box::pin(async move {
            let output = T::run(context, args).await?;
            encode("the result", &output).map_err(TaskError::permanent)
        })
    }))
}
