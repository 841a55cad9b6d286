//! Killing a task of the library's own, to see that nothing goes deaf: it panics where it waits.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

/// What ends each task, by runtime and name.
type Tasks = HashMap<(Id, &'static str), Vec<Arc<Notify>>>;

/// Tasks at work, by runtime and name, so that tests that run at the same time do not meet.
static TASKS: LazyLock<Mutex<Tasks>> = LazyLock::new(Mutex::default);

/// Names of the library's tasks that are at work on this runtime.
///
/// # Panics
/// Outside of a runtime.
pub fn tasks() -> Vec<&'static str> {
    let here = Handle::current().id();
    let tasks = TASKS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<_> = tasks.keys().filter(|(id, _)| *id == here).map(|(_, name)| *name).collect();
    names.sort_unstable();
    names
}

/// Makes every task of this name on this runtime panic where it waits; answers how many there are.
///
/// # Panics
/// Outside of a runtime.
pub fn kill(name: &str) -> usize {
    let here = Handle::current().id();
    let tasks = TASKS.lock().unwrap_or_else(PoisonError::into_inner);
    let marked = tasks.iter().filter(|((id, task), _)| *id == here && *task == name).flat_map(|(_, all)| all);
    marked.inspect(|kill| kill.notify_one()).count()
}

/// `work`, as long as nobody kills it.
pub(crate) async fn mortal(name: &'static str, work: impl Future<Output = ()>) {
    let life = Life::begin(name);
    // It panics while it is polled, so that what `work` holds is dropped by the panic, as after a defect of its own; a
    // branch of `select!` would run only after `work` was dropped in peace.
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

/// A task's place among [`TASKS`].
struct Life {
    key: (Id, &'static str),
    kill: Arc<Notify>,
}

impl Life {
    fn begin(name: &'static str) -> Self {
        let (key, kill) = ((Handle::current().id(), name), Arc::new(Notify::new()));
        let mut tasks = TASKS.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.entry(key).or_default().push(kill.clone());
        Self { key, kill }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut tasks = TASKS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(those) = tasks.get_mut(&self.key) {
            those.retain(|kill| !Arc::ptr_eq(kill, &self.kill));
            if those.is_empty() {
                tasks.remove(&self.key);
            }
        }
    }
}
