//! An answer of many records, read a page at a time: whatever is asked for, a little of it is in memory.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;

use crate::error::Result;
use crate::store::{Cursor, LogStore, Query, Stored};

/// The most of a page: records, and bytes of them.
const ROWS: usize = 1000;
const BYTES: usize = 1024 * 1024;

/// The records of a query, a page at a time, until its limit is reached or there are no more.
#[derive(Debug)]
pub(super) struct Pages {
    store: Arc<dyn LogStore>,
    query: Query,
    /// How many records may still come.
    left: usize,
}

impl Pages {
    /// What `query` asks for, of which `limit` bounds the whole and `bytes` does nothing.
    pub(super) fn of(store: &Arc<dyn LogStore>, query: Query) -> Self {
        Self { store: Arc::clone(store), left: query.limit, query }
    }

    /// The next page; an empty one is the end.
    pub(super) async fn next(&mut self) -> Result<Vec<Stored>> {
        if self.left == 0 {
            return Ok(Vec::new());
        }
        let limit = self.left.min(ROWS);
        let page = self.store.select(Query { limit, bytes: BYTES, ..self.query.clone() }).await?;
        match page.records.last() {
            Some(last) if page.partial || page.records.len() == limit => {
                self.query.after = Some(Cursor::after(last));
                self.query.skip = 0;
                self.left -= page.records.len();
            }
            _ => self.left = 0,
        }
        Ok(page.records)
    }
}

/// Where an answer ended.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Records in it.
    pub(super) count: usize,
    /// The last one's place.
    pub(super) last: Option<Cursor>,
    /// Whether its bound in bytes ended it.
    pub(super) partial: bool,
}

/// Records as they are written into a JSON document around them.
pub(super) struct Document {
    /// What comes before the records.
    pub(super) head: &'static str,
    /// A record.
    pub(super) record: fn(&Stored) -> String,
    /// What comes after them.
    pub(super) tail: Box<dyn Fn(&End) -> String + Send>,
    /// Bytes after which it ends; `usize::MAX` when it has to be whole.
    pub(super) bytes: usize,
}

impl Document {
    /// The document as a body. The first page is read before, so that a store that cannot be read answers an error.
    pub(super) async fn body(self, mut pages: Pages) -> Result<Body> {
        let first = pages.next().await?.into_iter();
        let state =
            Writing { document: self, pages, page: first, end: End::default(), bytes: 0, over: false };
        Ok(Body::from_stream(stream::try_unfold(state, Writing::next)))
    }
}

struct Writing {
    document: Document,
    pages: Pages,
    page: std::vec::IntoIter<Stored>,
    end: End,
    bytes: usize,
    over: bool,
}

impl Writing {
    /// The next piece: a record or a few, each written only now.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        const PIECE: usize = 64 * 1024;
        if self.over {
            return Ok(None);
        }
        let mut text = String::from(if self.end.count == 0 { self.document.head } else { "" });
        while text.len() < PIECE {
            if self.page.len() == 0 {
                self.page = self.pages.next().await?.into_iter();
            }
            let next = self.page.next();
            self.end.partial = next.is_some() && self.bytes >= self.document.bytes;
            let Some(stored) = next.filter(|_| !self.end.partial) else {
                text.push_str(&(self.document.tail)(&self.end));
                self.over = true;
                break;
            };
            if self.end.count > 0 {
                text.push(',');
            }
            let record = (self.document.record)(&stored);
            self.bytes += record.len();
            self.end.count += 1;
            self.end.last = Some(Cursor::after(&stored));
            text.push_str(&record);
        }
        Ok(Some((Bytes::from(text), self)))
    }
}
