//! Tracks the other processes that have the database file open, and wakes them.
//!
//! Next to the database `PATH` is a folder `PATH-peers` with one file per process. Each process keeps a lock on its own
//! file until it ends, so a free lock means that the process has ended; this is known at once, and a reused process id
//! does not matter. Each process also watches its file: a byte written to it wakes the process within a millisecond.
//! If there are no other processes, nothing is written.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use smol_str::SmolStr;
use tokio::sync::Notify;

use event_transport::consumer_name;
use event_transport::sync::lock;

/// This process among those that share the file.
#[derive(Debug)]
pub(super) struct Processes {
    folder: PathBuf,
    me: SmolStr,
    /// Signalled when another process writes to this process's file.
    pub(super) called: Arc<Notify>,
    others: Mutex<HashMap<SmolStr, File>>,
    /// `None` if the watch failed (for example at the system's limit of watches): then this process polls.
    watcher: Option<RecommendedWatcher>,
    /// Holds the lock.
    _mine: File,
}

impl Processes {
    /// Creates this process's file in the folder next to the database at `path`.
    pub(super) fn join(path: &Path) -> io::Result<Self> {
        let mut folder = path.as_os_str().to_owned();
        folder.push("-peers");
        let folder = PathBuf::from(folder);
        private_files::shared_folder(&folder, path)?;
        // The file is locked before it gets its final name, so an unlocked file always means a process that has ended.
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
            tracing::warn!(%error, "cannot watch the file through which other processes wake this one; polling instead");
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

    /// Whether other processes can wake this one; otherwise it must poll.
    pub(super) fn is_watching(&self) -> bool {
        self.watcher.is_some()
    }

    /// Wakes every other process.
    pub(super) fn call(&self) {
        for file in lock(&self.others).values() {
            let mut file = file;
            // If the write fails, the other process still polls.
            let _ = file.rewind().and_then(|()| file.write_all(b"!"));
        }
    }

    /// Updates the list of the other processes, and deletes the files of processes that have ended.
    pub(super) fn refresh(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let mut others = lock(&self.others);
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

    /// Whether the process with this name still runs.
    pub(super) fn lives(&self, name: &str) -> bool {
        if name == self.me {
            return true;
        }
        match File::open(self.folder.join(name)) {
            // A shared lock, so that two processes that check at the same time do not take each other for the owner.
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Deletes this process's file when it closes the database.
    pub(super) fn leave(&self) {
        let _ = std::fs::remove_file(self.folder.join(&*self.me));
        // The folder can be removed only when it is empty: by the last process.
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
