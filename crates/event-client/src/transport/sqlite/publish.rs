//! Stores published messages: those that are published at the same time go into common rows and one transaction.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::codec::{self, SEGMENT_BYTES, SEGMENT_COUNT};
use super::connection::{Answers, Script};
use super::error::{Sql, damaged};
use super::tail_cache::{self, Written};
use crate::bounds;
use crate::confirm::Answer;
use crate::error::Error;
use crate::message::{Message, Position};
use crate::subject::Subject;
use crate::transport::Receipt;

/// An encoded message that waits for the writer.
pub(super) struct Publish {
    subject: Subject,
    pub(super) record: Vec<u8>,
    pub(super) fsync: bool,
    /// The dedup id to store.
    dedup: Option<SmolStr>,
    /// The earliest delivery time, nanoseconds since 1970.
    due: Option<i64>,
    pub(super) answer: Answer<Receipt>,
}

impl Publish {
    /// Encodes `message`. The publisher's task does this, so that the writer only copies bytes.
    pub(super) fn new(message: &Message, fsync: bool, answer: Answer<Receipt>) -> Self {
        let now = codec::now();
        let due = message.deliver_at.map(codec::nanos).filter(|due| *due > now);
        let mut record = Vec::new();
        codec::encode(&mut record, message, due.map(|_| now));
        Self {
            subject: message.subject.clone(),
            record,
            fsync,
            dedup: message.dedup.then(|| SmolStr::new(message.id.to_string())),
            due,
            answer,
        }
    }
}

/// Messages of one topic that become one row.
pub(super) struct Segment {
    topic: SmolStr,
    subjects: Vec<(Subject, u32)>,
    count: u32,
    data: Vec<u8>,
    /// The index of each message's publish, in order.
    sources: Vec<usize>,
}

impl Segment {
    /// Distributes records to segments by topic; within a topic they keep their order.
    pub(super) fn pack<'a>(records: impl Iterator<Item = (usize, &'a Subject, &'a [u8])>) -> Vec<Self> {
        let mut full = Vec::new();
        let mut open: Vec<Self> = Vec::new();
        for (source, subject, record) in records {
            let topic = subject.topic();
            let place = open.iter().position(|segment| segment.topic == topic).unwrap_or_else(|| {
                open.push(Self::new(topic));
                open.len() - 1
            });
            let segment = &mut open[place];
            if segment.count >= SEGMENT_COUNT
                || segment.count > 0 && segment.data.len() + record.len() > SEGMENT_BYTES
            {
                full.push(std::mem::replace(segment, Self::new(topic)));
            }
            segment.push(source, subject, record);
        }
        // A full segment must come before the open one of its topic.
        full.append(&mut open);
        full
    }

    fn new(topic: &str) -> Self {
        Self { topic: topic.into(), subjects: Vec::new(), count: 0, data: Vec::new(), sources: Vec::new() }
    }

    fn push(&mut self, source: usize, subject: &Subject, record: &[u8]) {
        let place = self.subjects.iter().position(|(known, _)| known == subject).unwrap_or_else(|| {
            self.subjects.push((subject.clone(), 0));
            self.subjects.len() - 1
        });
        self.subjects[place].1 += 1;
        self.count += 1;
        codec::put_number(&mut self.data, place as u64);
        codec::put_number(&mut self.data, record.len() as u64);
        self.data.extend_from_slice(record);
        self.sources.push(source);
    }

    fn written(&self, at: i64) -> Written {
        Written {
            last: 0,
            count: i64::from(self.count),
            at,
            subjects: self
                .subjects
                .iter()
                .map(|(subject, count)| (subject.clone(), u64::from(*count)))
                .collect(),
            data: Bytes::copy_from_slice(&self.data),
        }
    }

    fn subjects(&self) -> String {
        let lines: Vec<_> =
            self.subjects.iter().map(|(subject, count)| format!("{subject} {count}")).collect();
        lines.join("\n")
    }
}

/// The highest number of segments in one statement: small, because each number is a separate SQL text in the statement
/// cache.
const ROWS: usize = 16;

/// Adds the statements that store `segments` and return their positions.
pub(super) fn insert(script: &mut Script, segments: Vec<Segment>, now: i64) -> Inserted {
    let start = script.len();
    let mut sources = Vec::new();
    let mut segments = segments.into_iter().peekable();
    while segments.peek().is_some() {
        let rows: Vec<_> = segments.by_ref().take(ROWS).collect();
        script.statement(&format!(
            "INSERT INTO segment (last, count, at, topic, subjects, data) \
             SELECT (SELECT ifnull(max(last), 0) FROM segment) + column1, column2, column3, column4, column5, column6 \
             FROM (VALUES {}) RETURNING last",
            vec!["(?,?,?,?,?,?)"; rows.len()].join(",")
        ));
        let mut offset = 0;
        let mut members = Vec::new();
        for segment in rows {
            offset += i64::from(segment.count);
            script.bind(offset).bind(i64::from(segment.count)).bind(now);
            let subjects = segment.subjects();
            script.bind(segment.topic.as_str()).bind(subjects).bind(segment.data);
            members.extend(segment.sources);
        }
        sources.push(members);
    }
    Inserted { start, sources }
}

/// The places of the results of [`insert`] among the script's results.
#[derive(Default)]
pub(super) struct Inserted {
    start: usize,
    sources: Vec<Vec<usize>>,
}

impl Inserted {
    /// The position of each message, with the index of its publish.
    fn positions(&self, answers: &Answers) -> Sql<Vec<(usize, i64)>> {
        let mut positions = Vec::new();
        for (step, sources) in self.sources.iter().enumerate() {
            let rows = answers.get(self.start + step).map(Vec::as_slice).unwrap_or_default();
            let lasts = rows.iter().map(|row| row.try_get::<i64, _>(0)).collect::<Sql<Vec<_>>>()?;
            let last = lasts.into_iter().max().ok_or(damaged("a stored segment has no position"))?;
            let first = last + 1 - sources.len() as i64;
            positions
                .extend(sources.iter().enumerate().map(|(index, source)| (*source, first + index as i64)));
        }
        Ok(positions)
    }
}

/// The publishes of one transaction.
pub(super) struct Batch {
    publishes: Vec<Publish>,
    receipts: Vec<Receipt>,
    segments: Vec<Segment>,
    dedup: bool,
    delayed: bool,
    window: Duration,
    now: i64,
    /// The segments without their positions, when they are small.
    tail: Vec<Written>,
}

/// The changes of a committed batch.
#[derive(Default)]
pub(super) struct Stored {
    /// Its segments, when they are small.
    pub(super) tail: Vec<Written>,
    /// Whether it has messages that can be delivered now.
    pub(super) any: bool,
    /// The time at which its first delayed message is due.
    pub(super) next_delayed: Option<i64>,
}

impl Batch {
    pub(super) fn new(publishes: Vec<Publish>, window: Duration) -> Self {
        let dedup = publishes.iter().any(|publish| publish.dedup.is_some());
        let delayed = publishes.iter().any(|publish| publish.due.is_some());
        let receipts = vec![Receipt::default(); publishes.len()];
        let mut batch = Self {
            publishes,
            receipts,
            segments: Vec::new(),
            dedup,
            delayed,
            window,
            now: codec::now(),
            tail: Vec::new(),
        };
        if !dedup {
            batch.pack();
        }
        batch
    }

    fn pack(&mut self) {
        let fresh = self
            .publishes
            .iter()
            .enumerate()
            .filter(|(index, publish)| publish.due.is_none() && !self.receipts[*index].duplicate);
        self.segments =
            Segment::pack(fresh.map(|(index, publish)| (index, &publish.subject, publish.record.as_slice())));
    }

    /// Whether it is a single statement, which needs no explicit transaction.
    pub(super) fn is_one_statement(&self) -> bool {
        !self.dedup && !self.delayed && (1..=ROWS).contains(&self.segments.len())
    }

    /// Runs `script` and stores the batch, in one round trip to the connection's thread if no dedup id is involved.
    /// Returns the results of the statements of `script`.
    pub(super) async fn write(
        &mut self,
        mut script: Script,
        alone: bool,
        connection: &mut SqliteConnection,
    ) -> Sql<Answers> {
        if !self.dedup {
            let inserted = self.store(&mut script);
            if !alone {
                script.statement("COMMIT");
            }
            let answers = script.run(connection).await?;
            self.place(inserted.positions(&answers)?);
            return Ok(answers);
        }
        // The known ids must be read under the write lock; then the messages must be stored to get their positions, and
        // only then can the ids be stored with these positions.
        let ids: Vec<_> = self.publishes.iter().filter_map(|publish| publish.dedup.as_deref()).collect();
        let ids = serde_json::to_string(&ids).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let known = script.statement(
            "SELECT id, position FROM dedup WHERE id IN (SELECT value FROM json_each(?)) AND at > ?",
        );
        script.bind(ids).bind(self.now.saturating_sub(bounds::signed_nanos(self.window)));
        let answers = script.run(connection).await?;
        let mut seen: HashMap<SmolStr, Option<usize>> = HashMap::new();
        let mut positions: HashMap<SmolStr, Option<i64>> = HashMap::new();
        for row in &answers[known] {
            let id = SmolStr::new(row.try_get::<&str, _>(0)?);
            seen.insert(id.clone(), None);
            positions.insert(id, row.try_get(1)?);
        }
        let mut twins = Vec::new();
        for (index, publish) in self.publishes.iter().enumerate() {
            let Some(id) = &publish.dedup else { continue };
            match seen.get(id) {
                None => {
                    seen.insert(id.clone(), Some(index));
                }
                Some(first) => {
                    let position = positions.get(id).copied().flatten().map(position);
                    self.receipts[index] = Receipt { position, duplicate: true };
                    twins.extend(first.map(|first| (index, first)));
                }
            }
        }
        self.pack();
        let mut script = Script::default();
        let inserted = self.store(&mut script);
        let stored = script.run(connection).await?;
        self.place(inserted.positions(&stored)?);
        for (twin, first) in twins {
            self.receipts[twin].position = self.receipts[first].position;
        }
        let fresh: Vec<_> =
            seen.into_iter().filter_map(|(id, first)| Some((id, self.receipts[first?].position))).collect();
        let mut script = Script::default();
        let now = self.now;
        script.rows(
            "REPLACE INTO dedup (id, at, position) SELECT * FROM",
            3,
            "",
            fresh,
            |script, (id, at)| {
                script.bind(id.as_str()).bind(now).bind(at.map(|at| at.0 as i64));
            },
        );
        script.statement("COMMIT");
        script.run(connection).await?;
        Ok(answers)
    }

    /// Adds the statements that store the messages that are not duplicates.
    fn store(&mut self, script: &mut Script) -> Inserted {
        let delayed: Vec<_> = self
            .publishes
            .iter_mut()
            .zip(&self.receipts)
            .filter(|(publish, receipt)| publish.due.is_some() && !receipt.duplicate)
            .map(|(publish, _)| (publish.due, publish.subject.clone(), std::mem::take(&mut publish.record)))
            .collect();
        script.rows(
            "INSERT INTO delayed (due, subject, data) SELECT * FROM",
            3,
            "",
            delayed,
            |script, row| {
                script.bind(row.0).bind(row.1.as_str()).bind(row.2);
            },
        );
        let segments = std::mem::take(&mut self.segments);
        if segments.len() <= ROWS
            && segments.iter().map(|segment| segment.data.len()).sum::<usize>() <= tail_cache::MAX_BYTES
        {
            self.tail = segments.iter().map(|segment| segment.written(self.now)).collect();
        }
        insert(script, segments, self.now)
    }

    fn place(&mut self, positions: Vec<(usize, i64)>) {
        // One statement stored all cached segments, so their positions are consecutive.
        let mut last = positions.iter().map(|(_, at)| *at).max().unwrap_or_default();
        for written in self.tail.iter_mut().rev() {
            written.last = last;
            last -= written.count;
        }
        for (source, at) in positions {
            self.receipts[source].position = Some(position(at));
        }
    }

    /// Confirms the publishes; to be called after the commit.
    pub(super) fn finish(self) -> Stored {
        let mut stored = Stored { tail: self.tail, ..Stored::default() };
        for (publish, receipt) in self.publishes.into_iter().zip(self.receipts).rev() {
            if !receipt.duplicate {
                match publish.due {
                    None => stored.any = true,
                    Some(due) => {
                        stored.next_delayed = Some(stored.next_delayed.map_or(due, |next: i64| next.min(due)))
                    }
                }
            }
            let _ = publish.answer.send(Ok(receipt));
        }
        stored
    }

    /// Resolves every publish with an error.
    pub(super) fn fail(self, error: impl Fn() -> Error) {
        for publish in self.publishes {
            let _ = publish.answer.send(Err(error()));
        }
    }
}

/// Converts a stored position to the transport's [`Position`].
pub(super) fn position(seq: i64) -> Position {
    Position(seq.max(0) as u128)
}
