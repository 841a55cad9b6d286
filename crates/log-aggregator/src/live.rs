//! What has just been stored, for those who watch: a ring that the writer never waits for.
//!
//! The ring is bounded in records and bytes. A viewer holds nothing but its place in it; one that is too slow
//! finds its place gone, learns how many records it missed, and goes on with the oldest there is. So a viewer
//! that never reads costs the others and the writer nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::watch;

use crate::http::logthon_entry;
use crate::store::Stored;

const MOST_RECORDS: usize = 8192;
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// Records that a viewer takes at once, and bytes of them.
const HANDFUL: usize = 256;
const HANDFUL_BYTES: usize = 1024 * 1024;
/// The end that says that no more will come.
const CLOSED: u64 = u64::MAX;

/// The latest records in the order of arrival.
#[derive(Debug)]
pub(crate) struct Live {
    ring: Mutex<Ring>,
    /// Place after the newest record: changes whenever there is something new.
    end: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Place of the oldest record that is still there, counted since the start.
    first: u64,
    records: VecDeque<Arc<Fresh>>,
    bytes: usize,
}

/// A record on its way to viewers; its texts are made once for all of them.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) stored: Stored,
    frame: OnceLock<Utf8Bytes>,
    json: OnceLock<String>,
}

impl Fresh {
    /// As Logthon's WebSocket pushes it.
    pub(crate) fn frame(&self) -> Utf8Bytes {
        self.frame.get_or_init(|| logthon_entry::text_of(&self.stored).into()).clone()
    }

    /// As our own API writes it.
    pub(crate) fn json(&self) -> &str {
        self.json.get_or_init(|| serde_json::to_string(&self.stored).expect("a record is JSON"))
    }
}

/// What a viewer finds when it looks.
#[derive(Debug)]
pub(crate) struct News {
    /// How many records it was too slow for.
    pub(crate) missed: u64,
    pub(crate) records: Vec<Arc<Fresh>>,
}

impl Live {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), end: watch::Sender::new(0) }
    }

    /// Shows records that are durable now.
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

    /// A viewer of everything that is pushed from now on. Whoever also wants what is there already asks the
    /// store afterwards, and leaves out what comes twice by its number.
    pub(crate) fn watch(self: &Arc<Self>) -> Viewer {
        let end = self.end.subscribe();
        let ring = self.ring.lock().expect("no code panics while holding the ring");
        let place = ring.first + ring.records.len() as u64;
        drop(ring);
        Viewer { live: Arc::clone(self), end, place }
    }

    /// Sends every viewer home.
    pub(crate) fn close(&self) {
        self.end.send_replace(CLOSED);
    }
}

/// One who watches.
#[derive(Debug)]
pub(crate) struct Viewer {
    live: Arc<Live>,
    end: watch::Receiver<u64>,
    place: u64,
}

impl Viewer {
    /// Waits for what is new. `None` when the aggregator ends.
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
