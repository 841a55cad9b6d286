//! The sequence of records for one viewer: first stored records, a page at a time, then new records. `websocket.rs` and
//! `tail.rs` send them.

use std::sync::Arc;

use super::App;
use super::pages::Pages;
use crate::error::Result;
use crate::live::{Fresh, News, Viewer};
use crate::store::{Cursor, Filter, Order, Query, Seq, Stored};

/// A viewer's position in the stored and the new records.
#[derive(Debug)]
pub(super) struct Feed {
    app: Arc<App>,
    filter: Filter,
    viewer: Viewer,
    /// The last record that the viewer has received or skips.
    seen: Seq,
    catching_up: bool,
    gap: bool,
}

/// The next records of a feed.
#[derive(Debug)]
pub(super) enum Batch {
    /// More records arrived while the viewer was disconnected than it can catch up with.
    Gap,
    /// Records from the store.
    Stored(Vec<Stored>),
    /// New records, and the number of records before them that the viewer missed because it was too slow.
    Fresh(u64, Vec<Arc<Fresh>>),
}

impl Feed {
    /// Makes a feed of the newest `count` matching records and of new records.
    pub(super) async fn with_backlog(app: &Arc<App>, filter: Filter, count: usize) -> Result<Self> {
        let viewer = app.live.watch();
        let mut feed =
            Self { app: Arc::clone(app), filter, viewer, seen: 0, catching_up: count > 0, gap: false };
        if count > 0 {
            // Start before the oldest of these records; from the beginning when there are fewer.
            let skip = count as u64 - 1;
            feed.seen = feed.one(Order::Newest, None, skip).await?.map_or(0, |oldest| oldest - 1);
        }
        Ok(feed)
    }

    /// Makes a feed of the records after `seen`, unless they are more than `most`, and of new records.
    pub(super) async fn after(app: &Arc<App>, filter: Filter, seen: Seq, most: u64) -> Result<Self> {
        let viewer = app.live.watch();
        let mut feed = Self { app: Arc::clone(app), filter, viewer, seen, catching_up: true, gap: false };
        if feed.one(Order::Oldest, Some(seen), most).await?.is_some() {
            (feed.catching_up, feed.gap) = (false, true);
        }
        Ok(feed)
    }

    /// Returns the position of one matching record: the one after `skip` matching records that follow `after`.
    async fn one(&self, order: Order, after: Option<Seq>, skip: u64) -> Result<Option<Seq>> {
        let after = after.map(|seq| Cursor { time: 0, seq });
        let query = Query { filter: self.filter.clone(), order, after, skip, limit: 1, ..Query::default() };
        Ok(self.app.store.select(query).await?.records.first().map(|stored| stored.seq))
    }

    /// Waits for the next records; returns `None` when the aggregator shuts down. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>> {
        if std::mem::take(&mut self.gap) {
            return Ok(Some(Batch::Gap));
        }
        while self.catching_up {
            // Start watching before reading the page, so that no record is missed between the last page and the first
            // new record. Records that arrive while pages remain are read with the pages.
            let viewer = self.app.live.watch();
            let after = Some(Cursor { time: 0, seq: self.seen });
            let query =
                Query { filter: self.filter.clone(), order: Order::Oldest, after, ..Query::default() };
            let mut pages = Pages::of(&self.app.store, Query { limit: usize::MAX, ..query });
            let page = pages.next().await?;
            self.viewer = viewer;
            match page.last() {
                Some(last) => {
                    self.seen = last.seq;
                    return Ok(Some(Batch::Stored(page)));
                }
                None => self.catching_up = false,
            }
        }
        loop {
            let Some(News { missed, mut records }) = self.viewer.next().await else { return Ok(None) };
            records.retain(|fresh| fresh.stored.seq > self.seen && self.filter.matches(&fresh.stored.record));
            if missed > 0 || !records.is_empty() {
                return Ok(Some(Batch::Fresh(missed, records)));
            }
        }
    }
}
