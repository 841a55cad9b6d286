//! Passes newly stored records to the viewers through a ring buffer; the writer never waits for a viewer.
//!
//! The ring is bounded in records and in bytes. A viewer holds only its position in the ring. If the record at this
//! position is dropped before the viewer reads it, the viewer receives the number of records that it missed and
//! continues with the oldest record in the ring. A viewer that never reads therefore costs the writer and the other
//! viewers nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::watch;

use crate::http::logthon_entry;
use crate::store::Stored;

const MOST_RECORDS: usize = 8192;
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// Maximum number of records that a viewer takes at once; below, their maximum size in bytes.
const HANDFUL: usize = 256;
const HANDFUL_BYTES: usize = 1024 * 1024;
/// Value of `end` after [`Live::close`]: no more records follow.
const CLOSED: u64 = u64::MAX;

/// The latest records, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct Live {
    ring: Mutex<Ring>,
    /// Position after the newest record; it changes with every new record.
    end: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Position of the oldest record in the ring, counted since the start.
    first: u64,
    records: VecDeque<Arc<Fresh>>,
    bytes: usize,
}

/// A stored record for the viewers; each serialised text is made once and shared by all viewers.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) stored: Stored,
    frame: OnceLock<Utf8Bytes>,
    json: OnceLock<String>,
}

impl Fresh {
    /// The text frame that Logthon's WebSocket sends.
    pub(crate) fn frame(&self) -> Utf8Bytes {
        self.frame.get_or_init(|| logthon_entry::text_of(&self.stored).into()).clone()
    }

    /// The JSON of `/api/v1`.
    pub(crate) fn json(&self) -> &str {
        self.json.get_or_init(|| serde_json::to_string(&self.stored).expect("a record is JSON"))
    }
}

/// The result of one read by a viewer.
#[derive(Debug)]
pub(crate) struct News {
    /// Number of records that were dropped before the viewer read them.
    pub(crate) missed: u64,
    pub(crate) records: Vec<Arc<Fresh>>,
}

impl Live {
    /// Makes an empty ring.
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), end: watch::Sender::new(0) }
    }

    /// Appends records that are stored durably.
    pub(crate) fn push(&self, kept: Vec<Stored>) {
        if kept.is_empty() {
            return;
        }
        let mut ring = self.ring.lock().expect("no code panics while holding the ring");
        for stored in kept {
            ring.bytes += stored.record.weight();
            ring.records.push_back(Arc::new(Fresh { stored, frame: OnceLock::new(), json: OnceLock::new() }));
        }
        while ring.records.len() > MOST_RECORDS || ring.bytes > MOST_BYTES {
            let Some(gone) = ring.records.pop_front() else { break };
            ring.bytes -= gone.stored.record.weight();
            ring.first += 1;
        }
        let end = ring.first + ring.records.len() as u64;
        drop(ring);
        self.end.send_if_modified(|seen| {
            let open = *seen != CLOSED;
            if open {
                *seen = end;
            }
            open
        });
    }

    /// Makes a viewer that receives all records pushed from now on. A caller that also wants the stored records
    /// queries the store afterwards and removes duplicates by `seq`.
    pub(crate) fn watch(self: &Arc<Self>) -> Viewer {
        let end = self.end.subscribe();
        let ring = self.ring.lock().expect("no code panics while holding the ring");
        let place = ring.first + ring.records.len() as u64;
        drop(ring);
        Viewer { live: Arc::clone(self), end, place }
    }

    /// Ends every viewer.
    pub(crate) fn close(&self) {
        self.end.send_replace(CLOSED);
    }
}

/// A reader of the ring.
#[derive(Debug)]
pub(crate) struct Viewer {
    live: Arc<Live>,
    end: watch::Receiver<u64>,
    place: u64,
}

impl Viewer {
    /// Waits for new records. Returns `None` when the aggregator shuts down.
    pub(crate) async fn next(&mut self) -> Option<News> {
        let place = self.place;
        if *self.end.wait_for(|end| *end > place).await.ok()? == CLOSED {
            return None;
        }
        let ring = self.live.ring.lock().expect("no code panics while holding the ring");
        let missed = ring.first.saturating_sub(self.place);
        let place = self.place.max(ring.first);
        let at = usize::try_from(place - ring.first).expect("no further than the ring is long");
        let mut bytes = 0;
        let few = ring.records.iter().skip(at).take(HANDFUL).take_while(|fresh| {
            let room = bytes < HANDFUL_BYTES;
            bytes += fresh.stored.record.weight();
            room
        });
        let records: Vec<_> = few.cloned().collect();
        drop(ring);
        self.place = place + records.len() as u64;
        Some(News { missed, records })
    }
}
