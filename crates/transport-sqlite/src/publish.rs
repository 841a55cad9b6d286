//! Stores published messages: those that are published at the same time go into common rows and one transaction.

use std::collections::HashMap;
use std::time::Duration;

use smol_str::SmolStr;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::codec;
use super::error::Sql;
use super::script::{Answers, Script};
use super::segment::{self, Inserted, ROWS, Segment, position};
use super::tail_cache::{self, Written};
use event_transport::Receipt;
use event_transport::bounds;
use event_transport::confirm::Answer;
use event_transport::error::Error;
use event_transport::message::Message;
use event_transport::subject::Subject;

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

/// The publishes of one transaction.
pub(super) struct Batch {
    publishes: Vec<Publish>,
    receipts: Vec<Receipt>,
    segments: Vec<Segment>,
    /// `None` if no message has a dedup id.
    dedup: Option<Dedup>,
    delayed: bool,
    now: i64,
    /// The segments without their positions, when they are small.
    tail: Vec<Written>,
}

/// The dedup ids of a batch.
#[derive(Default)]
struct Dedup {
    /// The time for which an id is remembered.
    window: Duration,
    /// Each id with the index of the publish that stores it; `None` if it was stored before.
    seen: HashMap<SmolStr, Option<usize>>,
    /// Publishes that repeat an earlier one of the batch, and that earlier one.
    repeats: Vec<(usize, usize)>,
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
            dedup: dedup.then(|| Dedup { window, ..Dedup::default() }),
            delayed,
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

    /// Whether it needs no explicit transaction: it is a single statement, or nothing.
    pub(super) fn is_one_statement(&self) -> bool {
        self.publishes.is_empty()
            || self.dedup.is_none() && !self.delayed && (1..=ROWS).contains(&self.segments.len())
    }

    /// Adds the statement that reads the known dedup ids. Returns the index of its result; `None` if no message has a
    /// dedup id.
    pub(super) fn look_up(&self, script: &mut Script) -> Sql<Option<usize>> {
        let Some(dedup) = &self.dedup else { return Ok(None) };
        let ids: Vec<_> = self.publishes.iter().filter_map(|publish| publish.dedup.as_deref()).collect();
        let ids = serde_json::to_string(&ids).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let known = script.statement(
            "SELECT id, position FROM dedup WHERE id IN (SELECT value FROM json_each(?)) AND at > ?",
        );
        script.bind(ids).bind(self.now.saturating_sub(bounds::signed_nanos(dedup.window)));
        Ok(Some(known))
    }

    /// Marks the messages whose dedup id is among the `known` ones or is repeated within the batch.
    pub(super) fn mark_duplicates(&mut self, known: &[SqliteRow]) -> Sql<()> {
        let Some(dedup) = &mut self.dedup else { return Ok(()) };
        let mut positions: HashMap<SmolStr, Option<i64>> = HashMap::new();
        for row in known {
            let id = SmolStr::new(row.try_get::<&str, _>(0)?);
            dedup.seen.insert(id.clone(), None);
            positions.insert(id, row.try_get(1)?);
        }
        for (index, publish) in self.publishes.iter().enumerate() {
            let Some(id) = &publish.dedup else { continue };
            match dedup.seen.get(id) {
                None => {
                    dedup.seen.insert(id.clone(), Some(index));
                }
                Some(first) => {
                    let position = positions.get(id).copied().flatten().map(position);
                    self.receipts[index] = Receipt { position, duplicate: true };
                    dedup.repeats.extend(first.map(|first| (index, first)));
                }
            }
        }
        self.pack();
        Ok(())
    }

    /// Adds the statement that stores the dedup ids of the new messages, with their positions.
    pub(super) fn remember(&mut self, script: &mut Script) {
        let Some(Dedup { seen, .. }) = self.dedup.take() else { return };
        let fresh: Vec<_> =
            seen.into_iter().filter_map(|(id, first)| Some((id, self.receipts[first?].position))).collect();
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
    }

    /// Adds the statements that store the messages that are not duplicates.
    pub(super) fn store(&mut self, script: &mut Script) -> Inserted {
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
        segment::insert(script, segments, self.now)
    }

    /// Reads the positions of the stored messages from the results of [`Batch::store`].
    pub(super) fn place(&mut self, inserted: &Inserted, answers: &Answers) -> Sql<()> {
        let positions = inserted.positions(answers)?;
        // One statement stored all cached segments, so their positions are consecutive.
        let mut last = positions.iter().map(|(_, at)| *at).max().unwrap_or_default();
        for written in self.tail.iter_mut().rev() {
            written.last = last;
            last -= written.count;
        }
        for (source, at) in positions {
            self.receipts[source].position = Some(position(at));
        }
        for (repeat, first) in self.dedup.iter().flat_map(|dedup| &dedup.repeats) {
            self.receipts[*repeat].position = self.receipts[*first].position;
        }
        Ok(())
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
