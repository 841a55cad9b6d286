//! Reads the log forward: buffers the matching messages after a position.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::codec::{self, Reader};
use super::error::{Sql, damaged};
use super::filters::Filters;
use super::script::Script;
use super::tail_cache::{TailCache, Written};
use crate::message::Message;
use crate::subject::{Pattern, Subject};

/// The highest number of segments that one query reads.
const ROWS: usize = 8;
/// Up to this number of topics, the query selects segments by topic; with more topics it reads all segments.
const TOPICS: usize = 8;

/// A message in the log, with its position and publication time.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) message: Arc<Message>,
    pub(super) seq: i64,
    pub(super) published: i64,
}

impl Stored {
    /// Whether it has expired at the time `now`.
    pub(super) fn is_expired(&self, now: i64) -> bool {
        is_expired(&self.message, now)
    }
}

/// Whether `message` has expired at the time `now` and must not be delivered.
pub(super) fn is_expired(message: &Message, now: i64) -> bool {
    message.expires_at.is_some_and(|at| codec::nanos(at) <= now)
}

/// A position in the log and a buffer of messages after it. The buffer is bounded, because a read happens only when it
/// is empty.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The id of the group that the filters belong to; 0 for a broadcast.
    group: i64,
    /// The group's revision at the last read of the file; 0 when the group does not exist.
    pub(super) revision: i64,
    pub(super) filters: Filters,
    /// The last position that was checked.
    pub(super) seen: i64,
    /// Matching messages up to `seen` that have not been taken yet.
    pub(super) buffer: VecDeque<Stored>,
    /// Whether a read has happened since the start: from then on deleted messages count as missed.
    reading: bool,
    /// The number of messages that the retention deleted before they were read.
    passed_over: u64,
}

impl Scan {
    /// Starts again after `position`, for a group or for a broadcast (`group` 0).
    pub(super) fn restart(&mut self, group: i64, position: i64, filters: Filters) {
        *self = Self { group, filters, seen: position, ..Self::default() };
    }

    /// The number of messages, since the last call, that the retention deleted before they were read. It is zero for a
    /// group, whose messages the retention keeps.
    pub(super) fn passed_over(&mut self) -> u64 {
        std::mem::take(&mut self.passed_over)
    }

    /// Fills the buffer if it is empty. Returns whether there may be more messages to read.
    pub(super) async fn fill(&mut self, readers: &SqlitePool, tail: &TailCache) -> Sql<bool> {
        if !self.buffer.is_empty() {
            return Ok(true);
        }
        while let Some(Written { last, count, at, subjects, data }) = tail.after(self.seen) {
            self.take(last, count, at, &subjects, || data)?;
            self.seen = last;
            self.reading = true;
            if !self.buffer.is_empty() {
                return Ok(true);
            }
        }
        let mut reader = readers.acquire().await?;
        let rows = self.query().run(&mut reader).await?.pop().unwrap_or_default();
        let mut segments = 0;
        let mut last = self.seen;
        for row in &rows {
            let Some(segment) = row.try_get::<Option<i64>, _>(1)? else { continue };
            self.read(row, segment)?;
            segments += 1;
            last = last.max(segment);
        }
        let (end, revision, kept_from): (i64, Option<i64>, i64) = match rows.first() {
            Some(row) => (row.try_get(0)?, row.try_get(6)?, row.try_get(7)?),
            None => (0, None, 0),
        };
        self.revision = revision.unwrap_or(0);
        if std::mem::replace(&mut self.reading, true) {
            self.passed_over += u64::try_from(kept_from - self.seen).unwrap_or(0);
        }
        let more = segments == ROWS;
        self.seen = if more { last } else { end.max(last) };
        Ok(more)
    }

    /// The query for the next segments. Each row also has the end of the log and the group's revision; if there is no
    /// segment, one row has only these.
    fn query(&self) -> Script {
        let topics: Option<BTreeSet<&str>> = self.filters.all().map(Pattern::topic).collect();
        let mut script = Script::default();
        let choice = match topics.as_ref().filter(|topics| topics.len() <= TOPICS) {
            None => format!("last > ? ORDER BY last LIMIT {ROWS}"),
            Some(topics) => {
                let each = format!(
                    "SELECT last FROM (SELECT last FROM segment WHERE topic = ? AND last > ? ORDER BY last LIMIT {ROWS})"
                );
                let all = vec![each; topics.len()].join(" UNION ALL ");
                format!("last IN ({all}) ORDER BY last LIMIT {ROWS}")
            }
        };
        script.statement(&format!(
            "SELECT edge.top, s.last, s.count, s.at, s.subjects, s.data, edge.revision, edge.kept \
             FROM (SELECT ifnull(max(last), 0) AS top, \
             (SELECT revision FROM consumer_group WHERE id = ?) AS revision, \
             ifnull((SELECT last - count FROM segment ORDER BY last LIMIT 1), 0) AS kept FROM segment) AS edge \
             LEFT JOIN (SELECT * FROM segment WHERE {choice}) AS s"
        ));
        script.bind(self.group);
        match topics.filter(|topics| topics.len() <= TOPICS) {
            None => {
                script.bind(self.seen);
            }
            Some(topics) => topics.into_iter().for_each(|topic| {
                script.bind(topic).bind(self.seen);
            }),
        }
        script
    }

    fn read(&mut self, row: &SqliteRow, last: i64) -> Sql<()> {
        let (count, at): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
        let (subjects, data): (_, &[u8]) = (subjects(row.try_get(4)?)?, row.try_get(5)?);
        self.take(last, count, at, &subjects, || Bytes::copy_from_slice(data))
    }

    /// Adds the matching messages of one segment to the buffer.
    fn take(
        &mut self,
        last: i64,
        count: i64,
        at: i64,
        subjects: &[(Subject, u64)],
        data: impl FnOnce() -> Bytes,
    ) -> Sql<()> {
        let wanted: Vec<bool> =
            subjects.iter().map(|(subject, _)| self.filters.matches(subject, last)).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        let first = last + 1 - count;
        for (index, message) in
            unpack(data(), count, subjects, |index, subject| wanted[subject] && first + index > self.seen)?
        {
            let (message, published) = message;
            self.buffer.push_back(Stored {
                message: Arc::new(message),
                seq: first + index,
                published: published.unwrap_or(at),
            });
        }
        Ok(())
    }
}

/// Reads a segment's subjects with their counts.
pub(super) fn subjects(column: &str) -> Sql<Vec<(Subject, u64)>> {
    column
        .lines()
        .map(|line| {
            let (subject, count) = line.split_once(' ')?;
            Some((Subject::new(subject).ok()?, count.parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| damaged("a segment's subjects cannot be read"))
}

type Unpacked = Vec<(i64, (Message, Option<i64>))>;

/// Decodes the records of a segment for which `wanted` returns true, given the record's index and the index of its
/// subject. Returns each record with its index.
fn unpack(
    data: Bytes,
    count: i64,
    subjects: &[(Subject, u64)],
    wanted: impl Fn(i64, usize) -> bool,
) -> Sql<Unpacked> {
    let mut reader = Reader::new(data);
    let mut unpacked = Vec::new();
    let mut read = |index: i64| -> Option<()> {
        let subject = usize::try_from(reader.number()?).ok()?;
        let length = reader.number()?;
        if wanted(index, subject.min(subjects.len().checked_sub(1)?)) {
            unpacked.push((index, reader.record(subjects.get(subject)?.0.clone())?));
        } else {
            reader.skip(length)?;
        }
        Some(())
    };
    for index in 0..count {
        read(index).ok_or_else(|| damaged("a segment's records cannot be read"))?;
    }
    Ok(unpacked)
}

/// Reads the messages at the positions `seqs` of a lease.
pub(super) async fn find(connection: &mut sqlx::sqlite::SqliteConnection, seqs: &[i64]) -> Sql<Vec<Stored>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(seq) = seqs.get(at) {
        let row = sqlx::query(
            "SELECT last, count, at, subjects, data FROM segment WHERE last >= ? ORDER BY last LIMIT 1",
        )
        .bind(*seq)
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| damaged("a leased message is not in the log"))?;
        let (last, count, time): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let subjects = subjects(row.try_get(3)?)?;
        let end = at + seqs[at..].partition_point(|seq| *seq <= last);
        let here: BTreeSet<i64> = seqs[at..end].iter().copied().collect();
        let first = last + 1 - count;
        let data = Bytes::copy_from_slice(row.try_get(4)?);
        for (index, (message, published)) in
            unpack(data, count, &subjects, |index, _| here.contains(&(first + index)))?
        {
            found.push(Stored {
                message: Arc::new(message),
                seq: first + index,
                published: published.unwrap_or(time),
            });
        }
        at = end;
    }
    Ok(found)
}

/// The number of matching messages after `cursor` in the segment that ends at `last`.
pub(super) async fn count_after(
    connection: &mut sqlx::sqlite::SqliteConnection,
    last: i64,
    cursor: i64,
    filters: &Filters,
) -> Sql<u64> {
    let seqs: Vec<i64> = (cursor + 1..=last).collect();
    let found = find(connection, &seqs).await?;
    let matching = found.iter().filter(|stored| filters.matches(&stored.message.subject, stored.seq));
    Ok(matching.count() as u64)
}
