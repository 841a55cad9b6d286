//! What a viewer gets, over WebSocket and server-sent events alike: stored records first, a page at a time, then
//! what is new.

use std::sync::Arc;

use super::App;
use super::pages::Pages;
use crate::error::Result;
use crate::live::{Fresh, News, Viewer};
use crate::store::{Cursor, Filter, Order, Query, Seq, Stored};

/// A viewer's place in what is stored and in what comes.
#[derive(Debug)]
pub(super) struct Feed {
    app: Arc<App>,
    filter: Filter,
    viewer: Viewer,
    /// The last record that it has had, or is not to have.
    seen: Seq,
    catching_up: bool,
    gap: bool,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Batch {
    /// More came while the viewer was away than it can catch up with.
    Gap,
    /// Records of the store.
    Stored(Vec<Stored>),
    /// Records that just came, and how many passed by before because the viewer was too slow.
    Fresh(u64, Vec<Arc<Fresh>>),
}

impl Feed {
    /// The newest `count` records that match, and what comes.
    pub(super) async fn with_backlog(app: &Arc<App>, filter: Filter, count: usize) -> Result<Self> {
        let viewer = app.live.watch();
        let mut feed =
            Self { app: Arc::clone(app), filter, viewer, seen: 0, catching_up: count > 0, gap: false };
        if count > 0 {
            // The place before the oldest of them; the beginning when there are not that many.
            let skip = count as u64 - 1;
            feed.seen = feed.one(Order::Newest, None, skip).await?.map_or(0, |oldest| oldest - 1);
        }
        Ok(feed)
    }

    /// What came after `seen`, unless it is more than `most` records, and what comes.
    pub(super) async fn after(app: &Arc<App>, filter: Filter, seen: Seq, most: u64) -> Result<Self> {
        let viewer = app.live.watch();
        let mut feed = Self { app: Arc::clone(app), filter, viewer, seen, catching_up: true, gap: false };
        if feed.one(Order::Oldest, Some(seen), most).await?.is_some() {
            (feed.catching_up, feed.gap) = (false, true);
        }
        Ok(feed)
    }

    /// The place of one matching record, `skip` records after `after`.
    async fn one(&self, order: Order, after: Option<Seq>, skip: u64) -> Result<Option<Seq>> {
        let after = after.map(|seq| Cursor { time: 0, seq });
        let query = Query { filter: self.filter.clone(), order, after, skip, limit: 1, ..Query::default() };
        Ok(self.app.store.select(query).await?.records.first().map(|stored| stored.seq))
    }

    /// Waits for what comes next; `None` when the aggregator ends. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>> {
        if std::mem::take(&mut self.gap) {
            return Ok(Some(Batch::Gap));
        }
        while self.catching_up {
            // Watching begins before the page is read, so that nothing can come between the last page and what is new;
            // what comes while there are pages is read with them.
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
