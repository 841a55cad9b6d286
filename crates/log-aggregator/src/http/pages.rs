//! Reads the records of a large response a page at a time, so that only a small part of it is in memory.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;

use crate::error::Result;
use crate::store::{Cursor, LogStore, Query, Stored};

/// Limits of a page: number of records, and their size in bytes.
const ROWS: usize = 1000;
const BYTES: usize = 1024 * 1024;

/// The records of a query, a page at a time, until its limit is reached or there are no more.
#[derive(Debug)]
pub(super) struct Pages {
    store: Arc<dyn LogStore>,
    query: Query,
    /// Number of records that may still be returned.
    left: usize,
}

impl Pages {
    /// Makes the pages of `query`. Its `limit` bounds all pages together; its `bytes` is ignored.
    pub(super) fn of(store: &Arc<dyn LogStore>, query: Query) -> Self {
        Self { store: Arc::clone(store), left: query.limit, query }
    }

    /// Returns the next page; an empty page is the end.
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

/// The end of a response.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Number of records in the response.
    pub(super) count: usize,
    /// Position of the last record.
    pub(super) last: Option<Cursor>,
    /// Whether the size limit ended the response.
    pub(super) partial: bool,
}

/// A JSON document that contains records.
pub(super) struct Document {
    /// Text before the records.
    pub(super) head: &'static str,
    /// Writes one record.
    pub(super) record: fn(&Stored) -> String,
    /// Text after the records.
    pub(super) tail: Box<dyn Fn(&End) -> String + Send>,
    /// Size in bytes after which the document ends; `usize::MAX` when it has to be complete.
    pub(super) bytes: usize,
}

impl Document {
    /// Returns the document as a response body. The first page is read here, so that an unreadable store is answered
    /// with an error.
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
    /// Returns the next piece: one or several records, serialised only now.
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
