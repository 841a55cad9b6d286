//! Reads the messages of one segment, each when it is asked for: an undecoded segment needs a fraction of the memory.

use std::sync::Arc;

use bytes::Bytes;

use super::codec::{self, Reader};
use super::error::{Sql, damaged};
use event_transport::message::Message;
use event_transport::subject::Subject;

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

/// The records of one segment from a position on.
#[derive(Debug)]
pub(super) struct Records {
    reader: Reader,
    subjects: Vec<(Subject, u64)>,
    /// The time at which the segment was stored.
    at: i64,
    /// The position of the next record, and of the last.
    next: i64,
    last: i64,
    /// The index of the next record's subject, once it was found to be wanted.
    wanted: Option<usize>,
    /// A record could not be read, so the place of the next one is not known.
    broken: bool,
}

impl Records {
    /// The `count` records in `data`, of which the last is at the position `last`.
    pub(super) fn new(data: Bytes, last: i64, count: i64, at: i64, subjects: Vec<(Subject, u64)>) -> Self {
        Self {
            reader: Reader::new(data),
            subjects,
            at,
            next: last + 1 - count,
            last,
            wanted: None,
            broken: false,
        }
    }

    /// The position of the next record for which `wanted` returns true, given the position and the index of the
    /// subject.
    pub(super) fn seek(&mut self, wanted: impl Fn(i64, usize) -> bool) -> Sql<Option<i64>> {
        while self.wanted.is_none() && !self.broken {
            if self.next > self.last {
                return Ok(None);
            }
            self.broken = self.read_head(&wanted).is_none();
        }
        if self.broken { Err(damaged("a segment's records cannot be read")) } else { Ok(Some(self.next)) }
    }

    fn read_head(&mut self, wanted: impl Fn(i64, usize) -> bool) -> Option<()> {
        let subject = usize::try_from(self.reader.number()?).ok()?;
        let length = self.reader.number()?;
        if wanted(self.next, subject.min(self.subjects.len().checked_sub(1)?)) {
            self.wanted = Some(subject);
        } else {
            self.reader.skip(length)?;
            self.next += 1;
        }
        Some(())
    }

    /// The record that [`Records::seek`] found.
    pub(super) fn take(&mut self) -> Sql<Option<Stored>> {
        let Some(subject) = self.wanted.take() else { return Ok(None) };
        let mut read = || self.reader.record(self.subjects.get(subject)?.0.clone());
        let Some((message, published)) = read() else {
            self.broken = true;
            return Err(damaged("a segment's records cannot be read"));
        };
        let stored =
            Stored { message: Arc::new(message), seq: self.next, published: published.unwrap_or(self.at) };
        self.next += 1;
        Ok(Some(stored))
    }
}
