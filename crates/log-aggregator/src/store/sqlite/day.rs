//! Opens the SQLite file of one day: its name, tables and connections. Upgrades an older layout, and sets a corrupt file
//! aside.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use sqlite_kit::{Identity, Lost};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection, Row, SqliteConnection};

use super::Options;
use super::counts::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Seq, Stored, nanoseconds};

/// Name of the lock file, which the process that owns the directory holds locked.
pub(super) const LOCK: &str = "lock";

const VERSION: i64 = 2;
const SCHEMA: &str = "
CREATE TABLE records (
  seq INTEGER PRIMARY KEY,      -- order of arrival, microseconds since 1970 made unique
  id BLOB NOT NULL,             -- UUID, 16 bytes
  time INTEGER NOT NULL,        -- place in the order of event time, nanoseconds since 1970
  arrived INTEGER NOT NULL,     -- arrival time, nanoseconds since 1970
  severity INTEGER NOT NULL,    -- OpenTelemetry's number, 1 to 24
  level TEXT NOT NULL,          -- the sender's own word
  service TEXT NOT NULL,
  message TEXT NOT NULL,
  attributes TEXT NOT NULL,     -- JSON object
  trace_id TEXT,
  span_id TEXT,
  request_id TEXT,
  correlation_id TEXT,
  raw TEXT,                     -- the body as received, when it had to be repaired
  said TEXT                     -- event time by the sender's clock, RFC 3339, when the place is another
);
CREATE INDEX by_time ON records (time);
CREATE INDEX by_service ON records (service);
CREATE INDEX by_service_time ON records (service, time);
CREATE INDEX by_trace ON records (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX by_request ON records (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX by_correlation ON records (correlation_id) WHERE correlation_id IS NOT NULL;
CREATE TABLE services (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE deliveries (id BLOB PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 2;
";
/// Upgrade from layout 1, in which `time` was the sender's event time. The records of a day arrived before the day
/// ended, so an event time after the end of the day comes from a wrong clock. The parameter is the end of the day.
const FROM_1: &str = "
UPDATE records SET time = arrived,
  said = strftime('%Y-%m-%dT%H:%M:%S', time / 1000000000, 'unixepoch') || printf('.%09dZ', time % 1000000000)
WHERE time >= ? AND time > arrived
";

/// A day's file with its connections for reading.
#[derive(Debug)]
pub(super) struct Day {
    pub(super) path: PathBuf,
    pub(super) readers: SqlitePool,
    /// Identity of the file at `path` when it was opened.
    file: Identity,
    /// First and last event time in the file, so that a query by time can skip the file.
    span: Mutex<Option<(i64, i64)>>,
    /// Whether the file has the current layout. A file that cannot be written keeps its earlier layout.
    current: AtomicBool,
}

/// The result of opening a day's file.
pub(super) enum Condition {
    /// The file is usable; the number is the `seq` of its newest record, or 0. A missing file was created.
    Sound(Day, Seq),
    /// The file was corrupt and was renamed to this path.
    SetAside(PathBuf),
}

impl Day {
    /// Opens or creates a day's file and reads its newest `seq` and its range of event times.
    pub(super) async fn load(options: &Options, date: Date) -> Result<Condition> {
        let path = path_of(&options.dir, date);
        match Self::try_load(options, date).await {
            Ok((day, last)) => Ok(Condition::Sound(day, last)),
            Err(error) if is_corrupt(&error) => {
                let aside = free_name(&path);
                std::fs::rename(&path, &aside).map_err(|e| {
                    Error::new(ErrorKind::Unavailable, format!("cannot set {} aside", path.display()))
                        .because(e)
                })?;
                // These files belong to the renamed file; a new database must not find them.
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::rename(with_suffix(&path, suffix), with_suffix(&aside, suffix));
                }
                Ok(Condition::SetAside(aside))
            }
            Err(error) => Err(failed(&format!("cannot open {}", path.display()), error)),
        }
    }

    async fn try_load(options: &Options, date: Date) -> std::result::Result<(Self, Seq), sqlx::Error> {
        let mut connection = open(options, date).await?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await?;
        let mut current = true;
        match version {
            0 => {
                let mut making = connection.begin().await?;
                sqlx::raw_sql(SCHEMA).execute(&mut *making).await?;
                making.commit().await?;
            }
            1 => {
                if let Err(error) = upgrade(&mut connection, date).await {
                    if is_corrupt(&error) {
                        return Err(error);
                    }
                    // The upgrade can fail, for example on a full disk; the records are served nevertheless.
                    tracing::warn!(%error, %date, "cannot upgrade the log file of a day; it keeps its earlier layout");
                    current = false;
                }
            }
            VERSION => {}
            newer => {
                let text = format!(
                    "the file has layout {newer}, but this program supports {VERSION}: use a newer program"
                );
                return Err(sqlx::Error::Configuration(text.into()));
            }
        }
        let sql = "SELECT (SELECT max(seq) FROM records), (SELECT min(time) FROM records), (SELECT max(time) FROM records)";
        let (last, from, to): (Option<i64>, Option<i64>, Option<i64>) =
            sqlx::query_as(sql).fetch_one(&mut connection).await?;
        connection.close().await?;
        let path = path_of(&options.dir, date);
        let file = Identity::of_file(&path).map_err(sqlx::Error::Io)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(10))
            // Longer than the acquire timeout: a warning would produce one more log record.
            .acquire_slow_threshold(Duration::from_secs(20))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(connect_options(&path).create_if_missing(false).pragma("query_only", "ON"));
        let span = Mutex::new(from.zip(to));
        let day = Self { path, readers, file, span, current: AtomicBool::new(current) };
        Ok((day, last.unwrap_or(0)))
    }

    /// Adds the file's number of records of each service to `tally`, one name at a time.
    pub(super) async fn count(&self, tally: &mut Tally) -> Result<()> {
        let what = |e| failed(&format!("cannot count in {}", self.path.display()), e);
        let mut rows =
            sqlx::query("SELECT name, count FROM services ORDER BY count DESC").fetch(&self.readers);
        while let Some(row) = rows.try_next().await.map_err(what)? {
            let name = row.try_get(0).map_err(what)?;
            tally.add(name, row.try_get::<i64, _>(1).map_err(what)?.unsigned_abs());
        }
        Ok(())
    }

    /// Returns whether the file may contain records with an event time from `since` (inclusive) to `until`
    /// (exclusive).
    pub(super) fn overlaps(&self, since: Option<i64>, until: Option<i64>) -> bool {
        let span = *self.span.lock().expect("no code panics while looking at it");
        span.is_some_and(|(from, to)| since.is_none_or(|t| to >= t) && until.is_none_or(|t| from < t))
    }

    /// Returns the latest event time in the file.
    pub(super) fn latest(&self) -> i64 {
        self.span.lock().expect("no code panics while looking at it").map_or(i64::MIN, |(_, to)| to)
    }

    /// Returns the SQL column of the event time by the sender's clock; the earlier layout has none.
    pub(super) fn said(&self) -> &'static str {
        if self.current.load(Ordering::Acquire) { "said" } else { "NULL" }
    }

    /// Upgrades the file to the current layout if it has an earlier one; records can only be added to the current
    /// layout.
    pub(super) async fn update(&self, connection: &mut SqliteConnection, date: Date) -> Result<()> {
        if !self.current.load(Ordering::Acquire) {
            let what = || format!("cannot upgrade {} to the current layout", self.path.display());
            upgrade(connection, date).await.map_err(|e| failed(&what(), e))?;
            self.current.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Checks that the file at `path` is still the one that was opened.
    pub(super) fn intact(&self) -> std::result::Result<(), Lost> {
        self.file.check()
    }

    /// Extends the range of event times by new records.
    pub(super) fn widen(&self, kept: &[Stored]) {
        let mut span = self.span.lock().expect("no code panics while looking at it");
        for stored in kept {
            let time = stored.place();
            *span = Some(span.map_or((time, time), |(from, to)| (from.min(time), to.max(time))));
        }
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
    }
}

/// Upgrades a file from layout 1 to the current layout.
async fn upgrade(connection: &mut SqliteConnection, date: Date) -> std::result::Result<(), sqlx::Error> {
    let end = date.tomorrow().and_then(|next| next.to_zoned(TimeZone::UTC));
    let end = end.map_or(i64::MAX, |end| nanoseconds(end.timestamp()));
    let mut changing = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql("ALTER TABLE records ADD COLUMN said TEXT").execute(&mut *changing).await?;
    sqlx::query(FROM_1).bind(end).execute(&mut *changing).await?;
    sqlx::raw_sql("PRAGMA user_version = 2").execute(&mut *changing).await?;
    changing.commit().await
}

/// A connection that writes into a day's file, and the identity of the opened files.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) connection: SqliteConnection,
    files: Identity,
}

impl Writing {
    /// Checks that the committed records are in the files that readers open.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the files were removed, moved or replaced.
    pub(super) fn confirm(&self) -> Result<()> {
        let text =
            "the day's file was moved, replaced or deleted while open, so the written records are not stored";
        self.files.check().map_err(|lost| Error::new(ErrorKind::Unavailable, text).because(lost))
    }
}

/// Opens a connection that writes into a day's file.
pub(super) async fn connect(options: &Options, date: Date) -> Result<Writing> {
    let path = path_of(&options.dir, date);
    let opened = async {
        let mut connection = open(options, date).await?;
        // One read makes SQLite create all files of the database.
        sqlx::query("SELECT 1 FROM sqlite_schema").execute(&mut connection).await?;
        let files = Identity::of(&path).map_err(sqlx::Error::Io)?;
        Ok(Writing { connection, files })
    };
    opened.await.map_err(|e| failed(&format!("cannot open {} for writing", path.display()), e))
}

async fn open(options: &Options, date: Date) -> std::result::Result<SqliteConnection, sqlx::Error> {
    let path = path_of(&options.dir, date);
    private_files::prepare_database(&path).map_err(sqlx::Error::Io)?;
    let mut connect = connect_options(&path);
    if let Some(bytes) = options.max_day_bytes {
        connect = connect.pragma("max_page_count", (bytes / 4096).max(1).to_string());
    }
    SqliteConnection::connect_with(&connect).await
}

fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        // A checkpoint costs two more fsyncs: checkpoint every 16 MiB instead of every 4 MiB.
        .pragma("wal_autocheckpoint", "4000")
        .pragma("temp_store", "MEMORY")
        // A row may have a size of 1 MiB.
        .row_buffer_size(8)
        // A warning about a slow statement is a log record that comes back here to be stored, slowly again.
        .disable_statement_logging()
}

/// Returns the day of a file by its name.
pub(super) fn date_of(name: &OsStr) -> Option<Date> {
    let date: Date = name.to_str()?.strip_prefix("logs-")?.strip_suffix(".db")?.parse().ok()?;
    // Other spellings of a date (`20260131`) are not names of this store: the file that it would open has another
    // name.
    (name == name_of(date).as_str()).then_some(date)
}

fn name_of(date: Date) -> String {
    format!("logs-{date}.db")
}

/// Returns whether this store creates files of this name in the log directory.
pub(super) fn is_ours(name: &str) -> bool {
    name == LOCK || name.starts_with("logs-")
}

fn path_of(dir: &Path, date: Date) -> PathBuf {
    // SQLite would take a relative directory such as `file:x` as a URI.
    Path::new(".").join(dir).join(name_of(date))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn free_name(path: &Path) -> PathBuf {
    let first = with_suffix(path, ".corrupt");
    let more = (2..).map(|n| with_suffix(path, &format!(".corrupt-{n}")));
    std::iter::once(first).chain(more).find(|name| !name.exists()).expect("numbers do not end")
}

/// SQLite's primary result code, if the error came from SQLite.
fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}

fn is_corrupt(error: &sqlx::Error) -> bool {
    const SQLITE_CORRUPT: i32 = 11;
    const SQLITE_NOTADB: i32 = 26;
    matches!(code(error), Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// Makes an [`Error`] of the operation `what` that failed with an SQL error.
pub(super) fn failed(what: &str, error: sqlx::Error) -> Error {
    const SQLITE_FULL: i32 = 13;
    let kind = match (code(&error), &error) {
        (Some(SQLITE_FULL), _) => ErrorKind::Full,
        (_, sqlx::Error::PoolClosed) => ErrorKind::Closed,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, what).because(error)
}
