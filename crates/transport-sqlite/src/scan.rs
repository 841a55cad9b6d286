//! Reads the log forward: buffers the matching messages after a position.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::error::{Sql, damaged};
use super::filters::Filters;
use super::records::{Records, Stored};
use super::script::Script;
use super::tail_cache::{TailCache, Written};
use event_transport::subject::{Pattern, Subject};

/// The highest number of segments that one query reads.
const ROWS: usize = 8;
/// Up to this number of topics, the query selects segments by topic; with more topics it reads all segments.
const TOPICS: usize = 8;

/// A position in the log and a buffer of segments after it. The buffer is bounded, because a read happens only when it
/// is empty, and its messages are decoded only when they are taken: a group that has taken them all keeps no memory.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The id of the group that the filters belong to; 0 for a broadcast.
    group: i64,
    /// The group's revision at the last read of the file; 0 when the group does not exist.
    pub(super) revision: i64,
    pub(super) filters: Filters,
    /// The last position that was checked.
    pub(super) seen: i64,
    /// Segments up to `seen` whose matching messages have not all been taken yet.
    segments: VecDeque<Wanted>,
    /// Messages that were taken and put back; they come before those in `segments`.
    back: VecDeque<Stored>,
    /// Whether a read has happened since the start: from then on deleted messages count as missed.
    reading: bool,
    /// The number of messages that the retention deleted before they were read.
    passed_over: u64,
}

/// A segment, and which of its messages match.
#[derive(Debug)]
struct Wanted {
    records: Records,
    /// For each subject of the segment, whether it matches.
    subjects: Vec<bool>,
    /// The position after which messages match.
    after: i64,
}

impl Wanted {
    fn seek(&mut self) -> Sql<Option<i64>> {
        let (subjects, after) = (&self.subjects, self.after);
        self.records.seek(|seq, subject| subjects[subject] && seq > after)
    }
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
        if self.next_position()?.is_some() {
            return Ok(true);
        }
        while let Some(Written { last, count, at, subjects, data }) = tail.after(self.seen) {
            self.add(last, count, at, subjects, || data);
            self.seen = last;
            self.reading = true;
            if self.next_position()?.is_some() {
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
        self.add(last, count, at, subjects, || Bytes::copy_from_slice(data));
        Ok(())
    }

    /// Adds a segment to the buffer, if any of its messages match.
    fn add(
        &mut self,
        last: i64,
        count: i64,
        at: i64,
        subjects: Vec<(Subject, u64)>,
        data: impl FnOnce() -> Bytes,
    ) {
        let wanted: Vec<bool> =
            subjects.iter().map(|(subject, _)| self.filters.matches(subject, last)).collect();
        if wanted.contains(&true) {
            let records = Records::new(data(), last, count, at, subjects);
            self.segments.push_back(Wanted { records, subjects: wanted, after: self.seen });
        }
    }

    /// The position of the next message in the buffer.
    pub(super) fn next_position(&mut self) -> Sql<Option<i64>> {
        if let Some(stored) = self.back.front() {
            return Ok(Some(stored.seq));
        }
        while let Some(segment) = self.segments.front_mut() {
            if let Some(seq) = segment.seek()? {
                return Ok(Some(seq));
            }
            self.segments.pop_front();
        }
        Ok(None)
    }

    /// Takes the next message from the buffer.
    pub(super) fn take(&mut self) -> Sql<Option<Stored>> {
        if let Some(stored) = self.back.pop_front() {
            return Ok(Some(stored));
        }
        if self.next_position()?.is_none() {
            return Ok(None);
        }
        self.segments.front_mut().map_or(Ok(None), |segment| segment.records.take())
    }

    /// Returns messages to the buffer that were taken from it; the first of `messages` was taken first.
    pub(super) fn put_back(&mut self, messages: Vec<Stored>) {
        for stored in messages.into_iter().rev() {
            self.back.push_front(stored);
        }
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
        let data = Bytes::copy_from_slice(row.try_get(4)?);
        let mut records = Records::new(data, last, count, time, subjects);
        while records.seek(|seq, _| here.contains(&seq))?.is_some() {
            found.extend(records.take()?);
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

#[cfg(test)]
mod tests {
    use super::super::codec;
    use super::*;
    use event_transport::message::Message;

    /// A segment with `count` messages of the subject `a.x`, of which the last is at the position `last`.
    fn segment(last: i64, count: i64) -> (Vec<(Subject, u64)>, Bytes) {
        let subject = Subject::new("a.x").unwrap();
        let mut data = Vec::new();
        for n in last + 1 - count..=last {
            let mut record = Vec::new();
            codec::encode(&mut record, &Message::new(subject.clone(), "text/plain", n.to_string()), None);
            codec::put_number(&mut data, 0);
            codec::put_number(&mut data, record.len() as u64);
            data.extend_from_slice(&record);
        }
        (vec![(subject, count as u64)], data.into())
    }

    #[test]
    fn a_burst_is_decoded_one_by_one_and_leaves_no_memory_behind() {
        let mut scan = Scan::default();
        scan.restart(0, 3, Filters::new(vec![Pattern::new("a.>").unwrap()]));
        for n in 1..=8 {
            let (subjects, data) = segment(n * 512, 512);
            scan.add(n * 512, 512, 7, subjects, || data);
        }
        assert_eq!(scan.next_position().unwrap(), Some(4), "the scan begins after its position");
        let taken: Vec<_> = (0..3).map(|_| scan.take().unwrap().unwrap()).collect();
        assert_eq!(scan.next_position().unwrap(), Some(7));
        scan.put_back(taken);
        for seq in 4..=4096 {
            let stored = scan.take().unwrap().unwrap();
            assert_eq!((stored.seq, stored.published), (seq, 7));
            assert_eq!(stored.message.payload, seq.to_string());
        }
        assert!(scan.take().unwrap().is_none());
        assert!(scan.segments.is_empty() && scan.segments.capacity() <= 16 && scan.back.capacity() <= 16);
    }
}
