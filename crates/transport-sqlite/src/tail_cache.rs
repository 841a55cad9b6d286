//! A cache of the latest segments that this process wrote, so that a waiting member need not read them from the file.
//!
//! It is only an optimisation: positions have no gaps over the whole file, so a reader that has read everything before
//! a segment may take the segment from this cache; every other reader reads the file.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use event_transport::subject::Subject;
use event_transport::sync::lock;

/// Largest cached data of one commit, in bytes: as much as a few publishers store. Larger amounts are read from the
/// file, where the cost per message is then low.
pub(super) const MAX_BYTES: usize = 16 << 10;
/// The number of cached segments.
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
    /// Adds committed segments.
    pub(super) fn extend(&self, written: Vec<Written>) {
        if written.is_empty() {
            return;
        }
        let mut tail = lock(&self.0);
        tail.extend(written);
        let over = tail.len().saturating_sub(MAX_COUNT);
        tail.drain(..over);
    }

    /// The segment whose first message directly follows position `seen`.
    pub(super) fn after(&self, seen: i64) -> Option<Written> {
        let tail = lock(&self.0);
        tail.iter().rev().find(|written| written.last - written.count == seen).cloned()
    }
}
