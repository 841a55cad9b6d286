//! The end of the log as this process wrote it, so that a waiting member need not read back what was just stored.
//!
//! Only an aid: positions are counted without gaps over the whole file, so whoever has seen everything before a
//! segment may take it from here; everybody else reads the file.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use crate::subject::Subject;

/// Largest segment kept, in bytes: what few publishers store. A bulk of messages is read from the file, which then
/// costs little for each.
pub(super) const MAX_BYTES: usize = 16 << 10;
/// Segments kept.
const MAX_COUNT: usize = 16;

/// A segment that was stored.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Position of its last message.
    pub(super) last: i64,
    pub(super) count: i64,
    pub(super) at: i64,
    pub(super) subjects: Vec<(Subject, u64)>,
    pub(super) data: Bytes,
}

/// The latest small segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct TailCache(Mutex<VecDeque<Written>>);

impl TailCache {
    /// Adds what was committed.
    pub(super) fn extend(&self, written: Vec<Written>) {
        if written.is_empty() {
            return;
        }
        let mut tail = self.0.lock().expect("not poisoned");
        tail.extend(written);
        let over = tail.len().saturating_sub(MAX_COUNT);
        tail.drain(..over);
    }

    /// The segment that begins right behind `seen`.
    pub(super) fn after(&self, seen: i64) -> Option<Written> {
        let tail = self.0.lock().expect("not poisoned");
        tail.iter().rev().find(|written| written.last - written.count == seen).cloned()
    }
}
