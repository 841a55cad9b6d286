//! The store on SQLite: one file per UTC day of arrival, `logs-2026-01-31.db`, in WAL mode.
//!
//! A day is its own file so that old days never slow new ones and can be removed whole. `synchronous` is
//! FULL: a commit returns after the fsync. The caller groups records: one append is one transaction.

mod counts;
mod day;
mod read;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
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
use day::{Condition, Day, Writing};

/// What the SQLite store needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the day files; made when missing.
    pub dir: PathBuf,
    /// No day's file grows beyond this many bytes: then appending answers [`ErrorKind::Full`] until the next
    /// day or until records are cleared. Default: no bound but the disk's.
    pub max_day_bytes: Option<u64>,
}

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

/// What only the one who writes may touch.
/// Held by the process that owns the directory.
const LOCK: &str = "lock";

#[derive(Debug)]
struct Writer {
    last: Seq,
    connection: Option<(Date, Writing)>,
}

impl SqliteStore {
    /// Opens the store, making the directory when there is none. A day's file that turns out not to be sound
    /// is set aside under the name `….db.corrupt` and reported; the other days are served.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or another process owns it.
    pub async fn open(options: Options) -> Result<Self> {
        let dir = &options.dir;
        let failed = |what: &str, e: std::io::Error| {
            Error::because(
                ErrorKind::Unavailable,
                format!("cannot {what} the log directory {}", dir.display()),
                e,
            )
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
                // Earlier versions let every user of the machine read them.
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
        // Whatever goes wrong, the connection is dropped with its transaction and the next append opens anew.
        let kept = write::append(&mut connection.connection, earlier.as_deref(), groups, first, now).await?;
        // Also where it is not confirmed: the records may turn up again.
        writer.last = kept.last().map_or(writer.last, |newest| newest.seq);
        if let Err(lost) = connection.confirm() {
            // Whoever sent the records sends them again; then the day is opened or made anew. Closed first, so that
            // what is only in the log of writes goes into the database where that still stands there.
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

    /// The connection that writes into a day's file; the day is made when it is new.
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
                    // One that was forgotten may have records.
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

    /// Forgets days whose files are no longer where they were opened, such as those that somebody deleted for room;
    /// and `broken`, whose file is there and whose log of writes is not.
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
                tracing::error!(file = %day.path.display(), error = %lost, "a day of logs is gone");
            }
            days.remove(&date);
            day.close().await;
        }
        let mut counts = Tally::default();
        for day in days.values() {
            if let Err(error) = day.count(&mut counts).await {
                tracing::warn!(error = error.chain(), "the records of a day are not counted");
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
        // Counted anew even after a failure: some days may be cleared then.
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
            // Nothing is lost when this fails: what was acknowledged is in the file or its WAL already.
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
