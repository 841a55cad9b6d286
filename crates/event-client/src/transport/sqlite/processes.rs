//! Tracks the other processes that have the file open, and wakes them.
//!
//! Beside the database `PATH` is a folder `PATH-peers` with one file per process. Each process holds a lock on its own
//! file for life, so a free lock means a dead process, at once and whatever its process id became. Each process also
//! watches its file: a byte written to it wakes that process within a millisecond. Without other processes nothing is
//! written.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use smol_str::SmolStr;
use tokio::sync::Notify;

use crate::transport::consumer_name;

/// This process among those that share the file.
#[derive(Debug)]
pub(super) struct Processes {
    folder: PathBuf,
    me: SmolStr,
    /// Signalled when another process calls.
    pub(super) called: Arc<Notify>,
    others: Mutex<HashMap<SmolStr, File>>,
    /// Without one (the system's limit of watches is reached) only polling is left.
    watcher: Option<RecommendedWatcher>,
    /// Holds the lock.
    _mine: File,
}

impl Processes {
    /// Announces this process beside the database at `path`.
    pub(super) fn join(path: &Path) -> io::Result<Self> {
        let mut folder = path.as_os_str().to_owned();
        folder.push("-peers");
        let folder = PathBuf::from(folder);
        private_files::shared_folder(&folder, path)?;
        // Locked before it gets its name: whoever finds it unlocked may believe it.
        let me = consumer_name();
        let (hidden, named) = (folder.join(format!(".{me}")), folder.join(&*me));
        let mine = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden)?;
        mine.lock()?;
        std::fs::rename(&hidden, &named)?;

        let called = Arc::new(Notify::new());
        let caller = called.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_modify()) {
                caller.notify_one();
            }
        })
        .and_then(|mut watcher| watcher.watch(&named, RecursiveMode::NonRecursive).map(|()| watcher))
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot watch for calls of other processes; polling instead");
        })
        .ok();
        let processes = Self { folder, me, called, others: Mutex::default(), watcher, _mine: mine };
        processes.refresh();
        Ok(processes)
    }

    /// This process's name.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// Whether calls arrive by themselves.
    pub(super) fn is_watching(&self) -> bool {
        self.watcher.is_some()
    }

    /// Wakes every other process.
    pub(super) fn call(&self) {
        for file in self.others.lock().expect("not poisoned").values() {
            let mut file = file;
            // A call that fails is made up for by the other's poll.
            let _ = file.rewind().and_then(|()| file.write_all(b"!"));
        }
    }

    /// Looks who is there, and clears away what dead processes left.
    pub(super) fn refresh(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let mut others = self.others.lock().expect("not poisoned");
        let mut found = HashMap::new();
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with('.') || name == self.me {
                continue;
            }
            if !self.lives(&name) {
                let _ = std::fs::remove_file(self.folder.join(&name));
                continue;
            }
            let name = SmolStr::new(name);
            if let Some(file) = others.remove(&name) {
                found.insert(name, file);
            } else if let Ok(file) = private_files::open_existing(&self.folder.join(&name)) {
                found.insert(name, file);
            }
        }
        *others = found;
    }

    /// Whether the process of that name still runs.
    pub(super) fn lives(&self, name: &str) -> bool {
        if name == self.me {
            return true;
        }
        match File::open(self.folder.join(name)) {
            // A shared lock, so that two who ask at the same time do not take each other for the owner.
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Takes the name away: the process is done.
    pub(super) fn leave(&self) {
        let _ = std::fs::remove_file(self.folder.join(&*self.me));
        // Removed only when this was the last one.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_living_are_known_and_called_and_the_dead_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.db");
        let one = Processes::join(&path).unwrap();
        let two = Processes::join(&path).unwrap();
        assert!(two.lives(one.me()) && !two.lives("1-nobody"));
        two.call();
        tokio::time::timeout(std::time::Duration::from_secs(10), one.called.notified()).await.unwrap();

        let name = two.me().to_owned();
        let left_behind = folder.path().join("bus.db-peers").join(&name);
        drop(two);
        assert!(left_behind.exists(), "a killed process cannot clean up");
        assert!(!one.lives(&name));
        one.refresh();
        assert!(!left_behind.exists());
    }
}
