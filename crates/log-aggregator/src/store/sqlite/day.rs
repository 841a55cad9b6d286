//! One day's file: its name, its tables, its connections, and what it holds when it is opened.

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
/// From layout 1, where `time` was what the sender said: a day's records arrived before the day ended, so whatever is
/// later than that is a clock that was wrong. The parameter is the end of the day.
const FROM_1: &str = "
UPDATE records SET time = arrived,
  said = strftime('%Y-%m-%dT%H:%M:%S', time / 1000000000, 'unixepoch') || printf('.%09dZ', time % 1000000000)
WHERE time >= ? AND time > arrived
";

/// A day that can be read.
#[derive(Debug)]
pub(super) struct Day {
    pub(super) path: PathBuf,
    pub(super) readers: SqlitePool,
    /// The file at `path`, as it was opened.
    file: Identity,
    /// First and last event time in the file, so that a query by time leaves the file alone if it can.
    span: Mutex<Option<(i64, i64)>>,
    /// Whether the file has today's layout. One that cannot be written keeps the layout it has.
    current: AtomicBool,
}

/// How a day's file was found.
pub(super) enum Condition {
    /// It can be used, and this is the newest record in it, or 0; a missing file was made.
    Sound(Day, Seq),
    /// It was not a sound database and now has this name.
    SetAside(PathBuf),
}

impl Day {
    /// Opens or makes a day's file and reads what it holds.
    pub(super) async fn load(options: &Options, date: Date) -> Result<Condition> {
        let path = path_of(&options.dir, date);
        match Self::try_load(options, date).await {
            Ok((day, last)) => Ok(Condition::Sound(day, last)),
            Err(error) if is_corrupt(&error) => {
                let aside = free_name(&path);
                std::fs::rename(&path, &aside).map_err(|e| {
                    Error::because(ErrorKind::Unavailable, format!("cannot set {} aside", path.display()), e)
                })?;
                // They belong to the file that went; a new one must not meet them.
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
                    // On a full disk, say: what it holds is served nevertheless.
                    tracing::warn!(%error, %date, "a day of logs keeps its earlier layout");
                    current = false;
                }
            }
            VERSION => {}
            newer => {
                let text =
                    format!("the file has layout {newer}, this program knows {VERSION}: use a newer one");
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
            // Longer than it can take: a warning would be one more line to be stored.
            .acquire_slow_threshold(Duration::from_secs(20))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(connect_options(&path).create_if_missing(false).pragma("query_only", "ON"));
        let span = Mutex::new(from.zip(to));
        let day = Self { path, readers, file, span, current: AtomicBool::new(current) };
        Ok((day, last.unwrap_or(0)))
    }

    /// Adds how many records of each service the file has, a name at a time.
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

    /// Whether the file may hold records from `since` on and before `until`.
    pub(super) fn overlaps(&self, since: Option<i64>, until: Option<i64>) -> bool {
        let span = *self.span.lock().expect("no code panics while looking at it");
        span.is_some_and(|(from, to)| since.is_none_or(|t| to >= t) && until.is_none_or(|t| from < t))
    }

    /// The latest event time in the file.
    pub(super) fn latest(&self) -> i64 {
        self.span.lock().expect("no code panics while looking at it").map_or(i64::MIN, |(_, to)| to)
    }

    /// What the sender's clock said, as a column.
    pub(super) fn said(&self) -> &'static str {
        if self.current.load(Ordering::Acquire) { "said" } else { "NULL" }
    }

    /// Brings the file to today's layout if it has an earlier one; records can be added to no other.
    pub(super) async fn update(&self, connection: &mut SqliteConnection, date: Date) -> Result<()> {
        if !self.current.load(Ordering::Acquire) {
            let what = || format!("cannot bring {} to today's layout", self.path.display());
            upgrade(connection, date).await.map_err(|e| failed(&what(), e))?;
            self.current.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether its file is still where it was opened.
    pub(super) fn intact(&self) -> std::result::Result<(), Lost> {
        self.file.check()
    }

    /// Takes new records into the span.
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

/// Brings a file of layout 1 to today's.
async fn upgrade(connection: &mut SqliteConnection, date: Date) -> std::result::Result<(), sqlx::Error> {
    let end = date.tomorrow().and_then(|next| next.to_zoned(TimeZone::UTC));
    let end = end.map_or(i64::MAX, |end| nanoseconds(end.timestamp()));
    let mut changing = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql("ALTER TABLE records ADD COLUMN said TEXT").execute(&mut *changing).await?;
    sqlx::query(FROM_1).bind(end).execute(&mut *changing).await?;
    sqlx::raw_sql("PRAGMA user_version = 2").execute(&mut *changing).await?;
    changing.commit().await
}

/// A connection that writes into a day's file, and which files that are.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) connection: SqliteConnection,
    files: Identity,
}

impl Writing {
    /// Whether what it has committed is where others look for it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the files were removed, moved or replaced.
    pub(super) fn confirm(&self) -> Result<()> {
        let text = "the day's file is no longer where it was opened, so what was written is not stored";
        self.files.check().map_err(|lost| Error::because(ErrorKind::Unavailable, text, lost))
    }
}

/// Opens a connection that writes into a day's file.
pub(super) async fn connect(options: &Options, date: Date) -> Result<Writing> {
    let path = path_of(&options.dir, date);
    let opened = async {
        let mut connection = open(options, date).await?;
        // Read once, so that all its files are there.
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
        // A checkpoint costs two more fsyncs: one for every 16 MiB rather than for every 4.
        .pragma("wal_autocheckpoint", "4000")
        .pragma("temp_store", "MEMORY")
        // A row may be a megabyte.
        .row_buffer_size(8)
        // A slow statement is a line in the log, which comes back here to be stored, and is slow again.
        .disable_statement_logging()
}

/// The day that a file belongs to, by its name.
pub(super) fn date_of(name: &OsStr) -> Option<Date> {
    let date: Date = name.to_str()?.strip_prefix("logs-")?.strip_suffix(".db")?.parse().ok()?;
    // Other spellings of a day (`20260131`) name no file of ours: the one that would be opened has another name.
    (name == name_of(date).as_str()).then_some(date)
}

fn name_of(date: Date) -> String {
    format!("logs-{date}.db")
}

/// Whether a name in the log directory is one that this store gives.
pub(super) fn is_ours(name: &str) -> bool {
    name == super::LOCK || name.starts_with("logs-")
}

fn path_of(dir: &Path, date: Date) -> PathBuf {
    // A relative directory such as `file:x` would be taken as a URI by SQLite.
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

/// Says what failed in our terms.
pub(super) fn failed(what: &str, error: sqlx::Error) -> Error {
    const SQLITE_FULL: i32 = 13;
    let kind = match (code(&error), &error) {
        (Some(SQLITE_FULL), _) => ErrorKind::Full,
        (_, sqlx::Error::PoolClosed) => ErrorKind::Closed,
        _ => ErrorKind::Unavailable,
    };
    Error::because(kind, what, error)
}
