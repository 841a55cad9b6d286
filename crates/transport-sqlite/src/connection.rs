//! Opens the database file: each process opens it once for all its handles, and starts the tasks that serve it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};
use sqlx::{ConnectOptions, Row};
use tokio_util::sync::CancellationToken;

use super::config::Storage;
use super::database::Database;
use super::error::{explain, lost};
use super::file::DatabaseFile;
use super::group_feed::Groups;
use super::housekeeping;
use super::membership::Members;
use super::processes::Processes;
use super::rpc::Rpc;
use super::schema;
use super::tail_cache::TailCache;
use super::wake::Wake;
use super::write_queue::WriteQueue;
use super::writer::Writer;
use event_transport::Provision;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;

/// The state that all handles of one file in this process share. Dropping the last `Arc` of it closes the database.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) database: Arc<Database>,
    pub(super) groups: Groups,
    pub(super) members: Arc<Members>,
    pub(super) rpc: Arc<Rpc>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.database.closing.cancel();
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
    if let Some(opened) = path.canonicalize().ok().as_ref().and_then(known)
        && !opened.database.queue.is_closed()
    {
        match opened.database.file.intact() {
            Ok(()) => return joined(opened, storage),
            // The old files are deleted: the new file can be opened independently of them.
            Err(_) if opened.database.file.is_gone() => {}
            // The old files still exist elsewhere. Two views of one file, each with its own write-ahead log, or two
            // files with one log would be destroyed.
            Err(gone) => return Err(lost(&gone, "connect")),
        }
    }
    let path = claim_file(path)?;
    let opened = Arc::new(start(path.clone(), storage.clone()).await?);
    open.insert(path, Arc::downgrade(&opened));
    Ok(opened)
}

/// Returns another handle of a database that this process has open already.
fn joined(opened: Arc<Open>, storage: &Storage) -> Result<Arc<Open>> {
    if opened.database.storage != *storage {
        return Err(Error::new(
            ErrorKind::Config,
            "this process has the file open with different retention, dedup or busy options; use the same options",
        )
        .with("file", opened.database.file.path().display()));
    }
    Ok(opened)
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

async fn start(path: PathBuf, storage: Storage) -> Result<Open> {
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .busy_timeout(storage.busy_timeout)
        .statement_cache_capacity(256)
        .row_buffer_size(512)
        .disable_statement_logging();
    let writer = open_writer(&path, &options).await?;
    let file = DatabaseFile::at(path.clone()).map_err(|error| {
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
    let database = Arc::new(Database {
        file,
        storage,
        queue: WriteQueue::default(),
        readers,
        tail: TailCache::default(),
        processes,
        wake: Wake::default(),
        closing: CancellationToken::new(),
        finished: CancellationToken::new(),
    });
    let open = Open {
        groups: Groups::default(),
        members: Arc::default(),
        rpc: Arc::new(Rpc::new(database.clone())?),
        database,
    };
    serve(&open, writer);
    Ok(open)
}

/// Opens the connection that writes, and prepares the file.
async fn open_writer(path: &Path, options: &SqliteConnectOptions) -> Result<SqliteConnection> {
    let explain = |error: sqlx::Error| explain(&error, "connect", path);
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
    Ok(writer)
}

/// Starts the tasks that serve the database until it closes.
fn serve(open: &Open, writer: SqliteConnection) {
    let database = &open.database;
    let died = database.clone();
    let writing = Writer::new(database.clone(), writer).run();
    tokio::spawn(supervise::run("sqlite writer", writing, move || died.break_off()));
    let (kept, members) = (database.clone(), open.members.clone());
    tokio::spawn(supervise::again("sqlite keeper", move || housekeeping::run(kept.clone(), members.clone())));
    let heard = database.clone();
    tokio::spawn(supervise::again("sqlite peers", move || housekeeping::hear(heard.clone())));
    let rpc = open.rpc.clone();
    tokio::spawn(supervise::again("sqlite calls", move || {
        let rpc = rpc.clone();
        async move { rpc.run().await }
    }));
    database.processes.call();
}
