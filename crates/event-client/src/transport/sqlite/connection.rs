//! The database file: each process opens it once for all its handles, with one writer and a few reader connections.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlite_kit::{Identity, Lost};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Either, Encode, Executor, Row, Sqlite, Type};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::{MAX_PAYLOAD, Storage};
use super::error::{Sql, explain, lost};
use super::group::GroupFeed;
use super::housekeeping;
use super::member::Member;
use super::processes::Processes;
use super::rpc::{self, Calls};
use super::schema;
use super::tail_cache::TailCache;
use super::writer::{Inbox, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::supervise;
use crate::transport::{MemoryConfig, MemoryTransport, Provision};

/// The state that all handles of one file in this process share.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) path: PathBuf,
    /// The identity of the files at `path` when they were opened.
    files: Identity,
    /// Whether the last check did not find these files.
    lost: AtomicBool,
    pub(super) storage: Storage,
    pub(super) inbox: Inbox,
    pub(super) readers: SqlitePool,
    pub(super) tail: TailCache,
    pub(super) processes: Processes,
    /// A counter that is increased when there may be something new to deliver.
    pub(super) changed: watch::Sender<u64>,
    /// Groups with a subscription in this process.
    pub(super) groups: Mutex<HashMap<i64, Weak<GroupFeed>>>,
    /// Subscriptions whose leases are renewed.
    pub(super) members: Mutex<HashMap<i64, Weak<Member>>>,
    pub(super) calls: Calls,
    /// Transports requests within the process.
    pub(super) here: Arc<MemoryTransport>,
    /// The time at which the next delayed message is due, nanoseconds since 1970.
    pub(super) next_delayed: AtomicI64,
    /// Wakes the housekeeping task early.
    pub(super) keeper: tokio::sync::Notify,
    /// Cancelled when the last handle and the last subscription are dropped.
    pub(super) closing: CancellationToken,
    /// Cancelled when the writer has flushed and closed the file.
    pub(super) finished: CancellationToken,
    purging: AtomicBool,
}

/// Keeps a [`Database`] open: dropping the last `Arc` of it closes the database.
#[derive(Debug)]
pub(super) struct Open(pub(super) Arc<Database>);

impl std::ops::Deref for Open {
    type Target = Arc<Database>;
    fn deref(&self) -> &Arc<Database> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closing.cancel();
    }
}

/// One database per file and process, so that all handles share a writer and wake each other without the disk.
static OPEN: LazyLock<tokio::sync::Mutex<HashMap<PathBuf, Weak<Open>>>> = LazyLock::new(Default::default);

/// Opens the file at `path`, or joins the handles that have it open.
pub(super) async fn open(path: &Path, storage: &Storage, provision: Provision) -> Result<Arc<Open>> {
    if !provision.creates() && !path.exists() {
        return Err(provision.missing(format_args!("the file {}", path.display())));
    }
    let mut open = OPEN.lock().await;
    open.retain(|_, database| database.strong_count() > 0);
    let known = |path: &PathBuf| open.get(path).and_then(Weak::upgrade);
    // Looked up before the file is opened: closing any file descriptor of a file releases all POSIX locks that this
    // process, and so SQLite, has on it.
    if let Some(database) = path.canonicalize().ok().as_ref().and_then(known)
        && !database.inbox.is_closed()
    {
        match database.intact() {
            Ok(()) => return joined(database, storage),
            // The old files are deleted: the new file can be opened independently of them.
            Err(_) if database.files.is_gone() => {}
            // The old files still exist elsewhere. Two views of one file, each with its own write-ahead log, or two
            // files with one log would be destroyed.
            Err(gone) => return Err(lost(&gone, "connect")),
        }
    }
    let path = claim_file(path)?;
    let database = Arc::new(Open(start(path.clone(), storage.clone()).await?));
    open.insert(path, Arc::downgrade(&database));
    Ok(database)
}

/// Returns another handle of a database that this process has open already.
fn joined(database: Arc<Open>, storage: &Storage) -> Result<Arc<Open>> {
    if database.storage != *storage {
        return Err(Error::new(
            ErrorKind::Config,
            "this process has the file open with different retention, dedup or busy options; use the same options",
        )
        .with("file", database.path.display()));
    }
    Ok(database)
}

/// Creates the file, readable by its owner only, unless it exists. Returns its canonical path.
fn claim_file(path: &Path) -> Result<PathBuf> {
    let refuse = |error: io::Error| {
        let (kind, text) = match error.kind() {
            io::ErrorKind::NotFound => {
                (ErrorKind::NotFound, "the folder of the database does not exist; create it first")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (ErrorKind::Denied, "the database may not be written; check the file's and folder's rights")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                (ErrorKind::Full, "the disk is full; free some space, then try again")
            }
            io::ErrorKind::IsADirectory => (ErrorKind::Config, "the path is a folder; name a file in it"),
            io::ErrorKind::NotADirectory => (ErrorKind::Config, "a part of the path is not a folder"),
            _ => (ErrorKind::Unavailable, "the database file cannot be opened"),
        };
        Error::new(kind, text).with("file", path.display()).because(error)
    };
    if path.is_dir() {
        return Err(refuse(io::ErrorKind::IsADirectory.into()));
    }
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(refuse)?;
    path.canonicalize().map_err(refuse)
}

async fn start(path: PathBuf, storage: Storage) -> Result<Arc<Database>> {
    let explain = |error| explain(&error, "connect", &path);
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .busy_timeout(storage.busy_timeout)
        .statement_cache_capacity(256)
        .row_buffer_size(512)
        .disable_statement_logging();
    let mut writer = options.clone().pragma("synchronous", "FULL").connect().await.map_err(explain)?;
    schema::prepare(&mut writer)
        .await
        .map_err(explain)?
        .map_err(|error| error.with("file", path.display()))?;
    let mode: String = sqlx::query("PRAGMA journal_mode = WAL")
        .fetch_one(&mut writer)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(explain)?;
    if mode != "wal" {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the file system has no shared memory for SQLite's WAL mode; use a local disk",
        )
        .with("file", path.display()));
    }
    // A checkpoint adds milliseconds to the commit that runs it, so it is rare (every 4000 pages); afterwards the log
    // is truncated to 64 MiB.
    sqlx::raw_sql(
        "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY;",
    )
    .execute(&mut writer)
    .await
    .map_err(explain)?;
    // Read once, so that SQLite creates the `-wal` and `-shm` files before their identity is read.
    sqlx::raw_sql("SELECT 1 FROM sqlite_schema").execute(&mut writer).await.map_err(explain)?;
    let files = Identity::of(&path).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the database was removed while it was being opened")
            .with("file", path.display())
            .because(error)
    })?;
    let readers = SqlitePoolOptions::new()
        .max_connections(4)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(options.pragma("query_only", "ON"));
    let processes = Processes::join(&path).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "cannot create this process's file next to the database")
            .with("file", path.display())
            .because(error)
    })?;
    let mut here = MemoryConfig::default();
    here.max_payload = MAX_PAYLOAD;
    here.max_bytes = here.max_bytes.max(MAX_PAYLOAD);
    let database = Arc::new(Database {
        path,
        files,
        lost: AtomicBool::new(false),
        storage,
        inbox: Inbox::default(),
        readers,
        tail: TailCache::default(),
        processes,
        changed: watch::Sender::new(0),
        groups: Mutex::default(),
        members: Mutex::default(),
        calls: Calls::default(),
        here: Arc::new(MemoryTransport::private(here)?),
        next_delayed: AtomicI64::new(0),
        keeper: tokio::sync::Notify::new(),
        closing: CancellationToken::new(),
        finished: CancellationToken::new(),
        purging: AtomicBool::new(false),
    });
    let died = database.clone();
    let writing = Writer::new(database.clone(), writer).run();
    tokio::spawn(supervise::run("sqlite writer", writing, move || died.break_off()));
    let kept = database.clone();
    tokio::spawn(supervise::again("sqlite keeper", move || housekeeping::run(kept.clone())));
    let heard = database.clone();
    tokio::spawn(supervise::again("sqlite peers", move || housekeeping::hear(heard.clone())));
    let called = database.clone();
    tokio::spawn(supervise::again("sqlite calls", move || rpc::run(called.clone(), called.here.clone())));
    database.processes.call();
    Ok(database)
}

impl Database {
    /// Called when the writer task has panicked: every operation on this file returns that the bus is closed, until the
    /// file is opened again.
    fn break_off(&self) {
        self.inbox.close();
        self.closing.cancel();
        self.processes.leave();
        self.finished.cancel();
        self.wake_here();
    }

    /// Converts an SQLite error to this crate's error.
    pub(super) fn explain(&self, error: &sqlx::Error, operation: &'static str) -> Error {
        explain(error, operation, &self.path)
    }

    /// Checks whether the files are still at the path where they were opened. It is called between a commit and its
    /// confirmation. It logs when the files are missing and when they are back.
    pub(super) fn intact(&self) -> Result<(), Lost> {
        let looked = self.files.check();
        let was_lost = self.lost.swap(looked.is_err(), Ordering::AcqRel);
        match &looked {
            Err(lost) if !was_lost => tracing::error!(
                file = %self.path.display(), error = %lost,
                "the database files are no longer at their path: nothing is stored or delivered"
            ),
            Ok(()) if was_lost => {
                tracing::info!(file = %self.path.display(), "the database files are back at their path");
            }
            _ => {}
        }
        looked
    }

    /// Like [`Database::intact`], but checks only if the last check did not find the files.
    pub(super) fn still_intact(&self) -> Result<(), Lost> {
        if self.lost.load(Ordering::Acquire) { self.intact() } else { Ok(()) }
    }

    /// Wakes the subscriptions of this process, because there may be something to deliver.
    pub(super) fn wake_here(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes the subscriptions of this process and lets every group look for due redeliveries.
    pub(super) fn wake_all_here(&self) {
        let groups = self.groups.lock().expect("not poisoned");
        for feed in groups.values().filter_map(Weak::upgrade) {
            feed.redeliver.store(true, Ordering::Release);
        }
        drop(groups);
        self.wake_here();
    }

    /// Like [`Database::wake_all_here`], but in every process.
    pub(super) fn wake_everywhere(&self) {
        self.wake_all_here();
        self.processes.call();
    }

    /// Marks a purge as running; `false` when one is running already.
    pub(super) fn begin_purge(&self) -> bool {
        !self.purging.swap(true, Ordering::AcqRel)
    }

    /// Marks the purge as ended.
    pub(super) fn end_purge(&self) {
        self.purging.store(false, Ordering::Release);
    }
}

/// Statements that are sent to the connection's thread together, because one round trip to that thread costs more than
/// most statements.
#[derive(Default)]
pub(super) struct Script {
    sql: String,
    arguments: SqliteArguments,
    steps: usize,
}

/// The result rows of each statement of a [`Script`].
pub(super) type Answers = Vec<Vec<SqliteRow>>;

impl Script {
    /// Adds a statement with `?` for its arguments. Returns the index of its result.
    pub(super) fn statement(&mut self, sql: &str) -> usize {
        self.sql.push_str(sql);
        self.sql.push(';');
        self.steps += 1;
        self.steps - 1
    }

    /// Binds the next argument.
    pub(super) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        self.arguments.add(value).expect("numbers, text and bytes always encode");
        self
    }

    /// Adds `{head} (VALUES (?, …), …) {tail}` for all rows, in statements of 64, 8 or 1 rows, so that the statement
    /// cache sees only three SQL texts. Returns the indexes of their results.
    pub(super) fn rows<T>(
        &mut self,
        head: &str,
        columns: usize,
        tail: &str,
        rows: Vec<T>,
        mut bind: impl FnMut(&mut Self, T),
    ) -> std::ops::Range<usize> {
        let start = self.steps;
        let mut left = rows.len();
        let mut rows = rows.into_iter();
        for chunk in [64, 8, 1] {
            while left >= chunk {
                let row = format!("({})", vec!["?"; columns].join(","));
                self.statement(&format!("{head} (VALUES {}) {tail}", vec![row; chunk].join(",")));
                rows.by_ref().take(chunk).for_each(|row| bind(self, row));
                left -= chunk;
            }
        }
        start..self.steps
    }

    /// The number of statements.
    pub(super) fn len(&self) -> usize {
        self.steps
    }

    /// Runs all statements; stops at the first error.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Sql<Answers> {
        let mut answers = Vec::with_capacity(self.steps);
        let mut rows = Vec::new();
        let query = sqlx::query_with(AssertSqlSafe(self.sql), self.arguments);
        let mut stream = connection.fetch_many(query);
        while let Some(step) = stream.try_next().await? {
            match step {
                Either::Left(_) => answers.push(std::mem::take(&mut rows)),
                Either::Right(row) => rows.push(row),
            }
        }
        Ok(answers)
    }
}

/// Writes numbers as a JSON array for `json_each`.
pub(super) fn json(numbers: impl IntoIterator<Item = i64>) -> String {
    let mut text = String::from("[");
    for number in numbers {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&number.to_string());
    }
    text.push(']');
    text
}
