//! Stores log records in SQLite: one file per UTC day of arrival, `logs-2026-01-31.db`, in WAL mode.
//!
//! Each day has its own file, so that old days do not slow new ones and can be deleted as a whole. `synchronous` is
//! FULL: a commit returns after the fsync. The caller groups records: one append is one transaction.

mod counts;
mod day;
mod options;
mod read;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio::sync::{Mutex, RwLock};

use super::{Counts, LogStore, Page, Query, RecordBatch, Seq, Stored};
use crate::error::{Error, ErrorKind, Result};
use counts::Tally;
use day::{Condition, Day, LOCK, Writing};

pub use options::Options;

/// Log records in one SQLite file per day. One process at a time owns a directory.
#[derive(Debug)]
pub struct SqliteStore {
    options: Options,
    days: RwLock<BTreeMap<Date, Arc<Day>>>,
    writer: Mutex<Writer>,
    counts: std::sync::Mutex<Tally>,
    closed: AtomicBool,
    _lock: File,
}

/// The state of the writing side.
#[derive(Debug)]
struct Writer {
    last: Seq,
    connection: Option<(Date, Writing)>,
}

impl SqliteStore {
    /// Opens the store and creates the directory when it is missing. A day's file that is corrupt is renamed to
    /// `….db.corrupt` and reported in the log; the other days are served.
    ///
    /// # Errors
    /// When the directory cannot be created or read, or when another process owns it.
    pub async fn open(options: Options) -> Result<Self> {
        let dir = &options.dir;
        let failed = |what: &str, e: std::io::Error| {
            Error::new(ErrorKind::Unavailable, format!("cannot {what} the log directory {}", dir.display()))
                .because(e)
        };
        private_files::create_folder(dir).map_err(|e| failed("make", e))?;
        private_files::narrow_folder(dir, day::is_ours).map_err(|e| failed("protect", e))?;
        let lock = private_files::open(&dir.join(LOCK)).map_err(|e| failed("write to", e))?;
        lock.try_lock().map_err(|_| {
            let text = format!("another process is using the log directory {}", dir.display());
            Error::new(ErrorKind::Unavailable, text)
        })?;
        let (mut days, mut counts, mut last) = (BTreeMap::new(), Tally::default(), 0);
        for entry in std::fs::read_dir(dir).map_err(|e| failed("read", e))? {
            let entry = entry.map_err(|e| failed("read", e))?;
            if entry.file_name().to_str().is_some_and(day::is_ours) {
                // Earlier versions created files that every user of the machine could read.
                private_files::narrow_file(&entry.path()).map_err(|e| failed("protect", e))?;
            }
            let Some(date) = day::date_of(&entry.file_name()) else { continue };
            match Day::load(&options, date).await? {
                Condition::Sound(day, newest) => {
                    day.count(&mut counts).await?;
                    last = last.max(newest);
                    days.insert(date, Arc::new(day));
                }
                Condition::SetAside(path) => {
                    tracing::error!(file = %path.display(), "a day of logs is corrupt and was set aside");
                }
            }
        }
        Ok(Self {
            options,
            days: RwLock::new(days),
            writer: Mutex::new(Writer { last, connection: None }),
            counts: std::sync::Mutex::new(counts),
            closed: AtomicBool::new(false),
            _lock: lock,
        })
    }

    async fn append(&self, groups: Vec<RecordBatch>) -> Result<Vec<Stored>> {
        let mut writer = self.writer.lock().await;
        let now = Timestamp::now();
        let first = now.as_microsecond().max(writer.last + 1);
        let date = Timestamp::from_microsecond(first).unwrap_or(now).to_zoned(TimeZone::UTC).date();
        let mut connection = self.writing(&mut writer, date).await?;
        let earlier = self.days.read().await.range(..date).next_back().map(|(_, day)| Arc::clone(day));
        // On any error the connection is dropped together with its transaction, and the next append opens a new one.
        let kept = write::append(&mut connection.connection, earlier.as_deref(), groups, first, now).await?;
        // Also when `confirm` fails: the records may reappear when the files are put back.
        writer.last = kept.last().map_or(writer.last, |newest| newest.seq);
        if let Err(lost) = connection.confirm() {
            // The sender receives an error and sends the records again; then the day's file is opened or created
            // again. Close the connection first, so that SQLite copies the records in the WAL into the database if
            // the database file still exists.
            let _ = sqlx::Connection::close(connection.connection).await;
            self.forget(Some(date)).await;
            return Err(lost);
        }
        writer.connection = Some((date, connection));
        if !kept.is_empty() {
            self.count(&kept);
            if let Some(day) = self.days.read().await.get(&date) {
                day.widen(&kept);
            }
        }
        Ok(kept)
    }

    fn count(&self, kept: &[Stored]) {
        let mut counts = self.counts.lock().expect("no code panics while counting");
        kept.iter().for_each(|stored| counts.add(&stored.record.service, 1));
    }

    /// Returns the connection that writes into a day's file; creates the file when the day is new.
    async fn writing(&self, writer: &mut Writer, date: Date) -> Result<Writing> {
        self.check_open()?;
        if let Some((open, connection)) = writer.connection.take()
            && open == date
        {
            return Ok(connection);
        }
        if !self.days.read().await.contains_key(&date) {
            let day = match Day::load(&self.options, date).await? {
                Condition::Sound(day, _) => {
                    // The file may contain records if `forget` removed the day before.
                    let mut own = Tally::default();
                    day.count(&mut own).await?;
                    let mut counts = self.counts.lock().expect("no code panics while counting");
                    own.counts().iter().for_each(|(service, records)| counts.add(service, *records));
                    day
                }
                Condition::SetAside(path) => {
                    tracing::error!(file = %path.display(), "a day of logs is corrupt and was set aside");
                    let text = format!("{} was corrupt and is set aside", path.display());
                    return Err(Error::new(ErrorKind::Unavailable, text));
                }
            };
            self.days.write().await.insert(date, Arc::new(day));
        }
        let mut connection = day::connect(&self.options, date).await?;
        let day = self.days.read().await.get(&date).map(Arc::clone);
        if let Some(day) = day {
            day.update(&mut connection.connection, date).await?;
        }
        Ok(connection)
    }

    /// Removes days whose files were moved, replaced or deleted since they were opened, for example to free space,
    /// and the day `broken`, whose database file exists but whose WAL does not.
    async fn forget(&self, broken: Option<Date>) {
        let known = self.days.read().await.clone();
        let gone: Vec<_> =
            known.into_iter().filter(|(date, day)| broken == Some(*date) || day.intact().is_err()).collect();
        if gone.is_empty() {
            return;
        }
        let mut days = self.days.write().await;
        for (date, day) in gone {
            if let Err(lost) = day.intact() {
                tracing::error!(file = %day.path.display(), error = %lost, "the log file of a day was moved, replaced or deleted");
            }
            days.remove(&date);
            day.close().await;
        }
        let mut counts = Tally::default();
        for day in days.values() {
            if let Err(error) = day.count(&mut counts).await {
                tracing::warn!(error = error.chain(), "cannot count the records of a day");
            }
        }
        *self.counts.lock().expect("no code panics while counting") = counts;
    }

    async fn clear(&self, service: Option<String>) -> Result<u64> {
        let mut writer = self.writer.lock().await;
        self.check_open()?;
        writer.connection = None;
        self.forget(None).await;
        let days: Vec<(Date, Arc<Day>)> =
            self.days.read().await.iter().map(|(date, day)| (*date, Arc::clone(day))).collect();
        let clearing = async {
            let mut removed = 0;
            for (date, _) in &days {
                let mut connection = day::connect(&self.options, *date).await?;
                removed += write::clear(&mut connection.connection, service.as_deref()).await?;
                connection.confirm()?;
            }
            Ok(removed)
        };
        let cleared = clearing.await;
        // Count again even after a failure: some days may have been cleared.
        let mut counts = Tally::default();
        for (_, day) in &days {
            day.count(&mut counts).await?;
        }
        *self.counts.lock().expect("no code panics while counting") = counts;
        cleared
    }

    fn check_open(&self) -> Result<()> {
        let closed = self.closed.load(Ordering::Acquire);
        if closed { Err(Error::new(ErrorKind::Closed, "the log store is closed")) } else { Ok(()) }
    }

    async fn close(&self) {
        let mut writer = self.writer.lock().await;
        self.closed.store(true, Ordering::Release);
        if let Some((_, Writing { connection, .. })) = writer.connection.take() {
            // A failure loses nothing: acknowledged records are already in the file or in its WAL.
            let _ = sqlx::Connection::close(connection).await;
        }
        for day in std::mem::take(&mut *self.days.write().await).into_values() {
            day.close().await;
        }
    }
}

impl LogStore for SqliteStore {
    fn append(&self, groups: Vec<RecordBatch>) -> BoxFuture<'_, Result<Vec<Stored>>> {
        self.append(groups).boxed()
    }

    fn select(&self, query: Query) -> BoxFuture<'_, Result<Page>> {
        async move {
            self.check_open()?;
            self.forget(None).await;
            let days: Vec<Arc<Day>> = self.days.read().await.values().cloned().collect();
            read::select(&days, query).await
        }
        .boxed()
    }

    fn counts(&self) -> BoxFuture<'_, Result<Counts>> {
        let counts = self.counts.lock().expect("no code panics while counting").counts();
        std::future::ready(Ok(counts)).boxed()
    }

    fn clear(&self, service: Option<String>) -> BoxFuture<'_, Result<u64>> {
        self.clear(service).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.close().boxed()
    }
}
