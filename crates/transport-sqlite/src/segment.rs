//! Segments: messages of one topic that are stored together in one row of the log.

use bytes::Bytes;
use smol_str::SmolStr;
use sqlx::Row;

use super::codec::{self, SEGMENT_BYTES, SEGMENT_COUNT};
use super::error::{Sql, damaged};
use super::script::{Answers, Script};
use super::tail_cache::Written;
use event_transport::message::Position;
use event_transport::subject::Subject;

/// Messages of one topic that become one row.
pub(super) struct Segment {
    topic: SmolStr,
    subjects: Vec<(Subject, u32)>,
    count: u32,
    pub(super) data: Vec<u8>,
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

    pub(super) fn written(&self, at: i64) -> Written {
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
pub(super) const ROWS: usize = 16;

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
    pub(super) fn positions(&self, answers: &Answers) -> Sql<Vec<(usize, i64)>> {
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

/// Converts a stored position to the transport's [`Position`].
pub(super) fn position(seq: i64) -> Position {
    Position(seq.max(0) as u128)
}
