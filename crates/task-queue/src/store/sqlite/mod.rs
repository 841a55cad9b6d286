//! Implements the task store in one SQLite file in WAL mode, shared by the processes of one machine.
//!
//! One writer per process owns the only writing connection and merges waiting operations into one transaction, so
//! that concurrent callers share an fsync (`writer`); reads use a small pool and never wait. A small file beside
//! the database wakes other processes (`wake`).

mod aside;
mod claim;
mod control;
mod enqueue;
mod error;
mod kinds;
mod options;
#[cfg(test)]
mod plans;
mod query;
mod rows;
mod schedule;
mod schema;
mod settle;
mod wake;
mod workers;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use sqlite_kit::Identity;
use sqlx::{
    ConnectOptions, Executor, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub(crate) use error::db;
pub use options::{Durability, SqliteOptions};

use super::Notifier;
use crate::{Error, ErrorKind, Result};

/// A task store in a SQLite file.
pub struct SqliteStore {
    options: SqliteOptions,
    readers: SqlitePool,
    writer: writer::Writer,
    notifier: Arc<Notifier>,
    /// The time of this process's next search for unknown kinds.
    census: AtomicI64,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.options.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens or creates the file and upgrades its schema to this version.
    ///
    /// # Errors
    /// The error names the file and the reason: it cannot be opened or written, it is damaged or another program's,
    /// it is locked, or a newer version of this crate wrote it. [`ErrorKind::Invalid`] for an option outside its
    /// limits.
    pub async fn open(options: SqliteOptions) -> Result<Self> {
        options.check()?;
        let path = &options.path;
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            let text = format!(
                "the directory {} of the task store does not exist: create it first",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        private_files::prepare_database(path).map_err(|error| {
            let text = format!("cannot open the task store {}", path.display());
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    ErrorKind::ReadOnly
                }
                _ => ErrorKind::Unavailable,
            };
            Error::new(kind, text).because(error)
        })?;
        let opening = |error| db(&format!("opening the task store {}", path.display()), error);
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match options.durability {
                Durability::Fsync => SqliteSynchronous::Full,
                Durability::PageCache => SqliteSynchronous::Normal,
            })
            .busy_timeout(options.busy_timeout)
            .statement_cache_capacity(256)
            .disable_statement_logging();
        let mut connection = connect_patiently(&connect, options.busy_timeout).await.map_err(opening)?;
        schema::prepare(&mut connection, path).await?;
        // From here on the writer itself waits and retries when the file is locked.
        connection.execute("PRAGMA busy_timeout = 1").await.map_err(opening)?;
        // The schema was read, so all files of the database exist.
        let files = Identity::of(path).map_err(|error| {
            let text = format!("the task store {} was removed while it was being opened", path.display());
            Error::new(ErrorKind::Unavailable, text).because(error)
        })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .min_connections(0)
            .connect_lazy_with(connect.pragma("query_only", "on"));
        let notifier = Arc::new(Notifier::default());
        let wake = wake::Wake::open(&wake_path(path), notifier.clone());
        let writer = writer::Writer::start(connection, files, options.clone(), notifier.clone(), wake)?;
        Ok(Self { options, readers, writer, notifier, census: AtomicI64::new(0) })
    }

    /// The path of the database.
    pub fn path(&self) -> &Path {
        &self.options.path
    }
}

/// Connects; tries again while the file is busy. When several processes open a new file together, one switches it
/// to WAL mode, and SQLite fails the others at once instead of letting them wait.
async fn connect_patiently(
    connect: &SqliteConnectOptions,
    patience: Duration,
) -> std::result::Result<SqliteConnection, sqlx::Error> {
    let give_up = tokio::time::Instant::now() + patience;
    loop {
        match connect.connect().await {
            Err(error) if error::is_busy(&error) && tokio::time::Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await;
            }
            outcome => return outcome,
        }
    }
}

/// Returns the path of the wake-up file: `tasks.db-wake`, beside SQLite's own `-wal` and `-shm`.
fn wake_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wake");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewTask, TaskControl, TaskQuery, TaskQueue};

    /// Checks this for each file of the database.
    #[tokio::test]
    async fn a_store_that_was_moved_away_confirms_nothing_until_it_is_back() {
        for name in ["tasks.db", "tasks.db-wal", "tasks.db-shm"] {
            let folder = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(SqliteOptions::new(folder.path().join("tasks.db"))).await.unwrap();
            store.enqueue(vec![NewTask::named("a", "[]")]).await.unwrap();
            let (file, aside) = (folder.path().join(name), folder.path().join("aside"));
            std::fs::rename(&file, &aside).unwrap();
            for attempt in 1..=2 {
                let error = store.enqueue(vec![NewTask::named("b", "[]")]).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}, attempt {attempt}");
                assert!(error.to_string().contains(name), "{error}");
            }
            let error = store.pause("default", true).await.unwrap_err();
            assert!(error.to_string().contains(name), "rare operations too: {error}");
            std::fs::write(&file, "").unwrap();
            let error = store.enqueue(vec![NewTask::named("b", "[]")]).await.unwrap_err();
            assert!(error.to_string().contains("replaced"), "{error}");
            std::fs::rename(&aside, &file).unwrap();
            store.enqueue(vec![NewTask::named("b", "[]")]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_that_loses_nothing_and_passes() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(folder.path().join("tasks.db"))).await.unwrap();
        let first = NewTask::named("a", "[]");
        let id = first.id;
        store.enqueue(vec![first]).await.unwrap();
        // SQLite's own limit on the file size replaces a full disk: it causes the same error at the same place.
        let bound = async |pages: &'static str| {
            let set = store.writer.alone(move |connection| {
                Box::pin(async move {
                    connection.execute(pages).await.map_err(|error| db("bounding the file", error))?;
                    Ok(((), &[] as _))
                })
            });
            set.await.unwrap();
        };
        bound("PRAGMA max_page_count = 40").await;
        let large = || vec![NewTask::named("a", format!("[\"{}\"]", "x".repeat(500_000)))];
        let error = store.enqueue(large()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("disk is full"), "{error}");
        assert!(store.get(id).await.unwrap().is_some());
        bound("PRAGMA max_page_count = 100000").await;
        store.enqueue(large()).await.unwrap();
        assert_eq!(store.stats().await.unwrap()[0].counts.values().sum::<u64>(), 2);
    }
}
