//! Test support that makes a task of this library panic, to verify that the library recovers from it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use crate::sync::lock;

/// The notification that ends each task, by runtime and name.
type Tasks = HashMap<(Id, &'static str), Vec<Arc<Notify>>>;

/// The running tasks, by runtime and name, so that tests that run at the same time do not affect each other.
static TASKS: LazyLock<Mutex<Tasks>> = LazyLock::new(Mutex::default);

/// Returns the names of the library's tasks that run on this runtime.
///
/// # Panics
/// Outside of a runtime.
pub fn tasks() -> Vec<&'static str> {
    let here = Handle::current().id();
    let tasks = lock(&TASKS);
    let mut names: Vec<_> = tasks.keys().filter(|(id, _)| *id == here).map(|(_, name)| *name).collect();
    names.sort_unstable();
    names
}

/// Makes every task of this name on this runtime panic where it waits; returns the number of these tasks.
///
/// # Panics
/// Outside of a runtime.
pub fn kill(name: &str) -> usize {
    let here = Handle::current().id();
    let tasks = lock(&TASKS);
    let marked = tasks.iter().filter(|((id, task), _)| *id == here && *task == name).flat_map(|(_, all)| all);
    marked.inspect(|kill| kill.notify_one()).count()
}

/// Runs `work` until it ends or a test kills the task.
pub async fn mortal(name: &'static str, work: impl Future<Output = ()>) {
    let life = Life::begin(name);
    // The panic occurs while this future is polled, so that the panic drops the values that `work` holds, as after a
    // defect of its own; a branch of `select!` would run only after `work` was dropped normally.
    let killed = async {
        life.kill.notified().await;
        panic!("killed by a test");
    };
    tokio::select! {
        biased;
        () = killed => {}
        () = work => {}
    }
}

/// A task's entry in [`TASKS`], removed when the task ends.
struct Life {
    key: (Id, &'static str),
    kill: Arc<Notify>,
}

impl Life {
    fn begin(name: &'static str) -> Self {
        let (key, kill) = ((Handle::current().id(), name), Arc::new(Notify::new()));
        let mut tasks = lock(&TASKS);
        tasks.entry(key).or_default().push(kill.clone());
        Self { key, kill }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut tasks = lock(&TASKS);
        if let Some(those) = tasks.get_mut(&self.key) {
            those.retain(|kill| !Arc::ptr_eq(kill, &self.kill));
            if those.is_empty() {
                tasks.remove(&self.key);
            }
        }
    }
}
