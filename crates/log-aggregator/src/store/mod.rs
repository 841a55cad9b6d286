//! The contract of a log store ([`LogStore`]), its query types, and the SQLite store.

mod filter;
pub(crate) mod search;
mod sqlite;
mod time;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use event_client::log::{LogRecord, Severity};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::Result;

pub use filter::Filter;
pub use sqlite::{Options as SqliteOptions, SqliteStore};
pub(crate) use time::nanoseconds;
pub use time::place_of;

/// A record's position in the order of arrival: unique and increasing, the arrival in microseconds since 1970;
/// records of the same microsecond get the next free numbers. A JavaScript number holds it exactly.
pub type Seq = i64;

/// A stored record.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its position in the order of arrival.
    pub seq: Seq,
    /// The record; its arrival time is set.
    pub record: LogRecord,
}

/// Serialises the record's fields and `seq`, and `repaired` when the record was repaired. The attributes are written
/// as they were sent, in their order and with all their digits; this works with a JSON serializer only.
impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct View<'a> {
            seq: Seq,
            id: Uuid,
            time: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            arrived: Option<Timestamp>,
            severity: Severity,
            level: &'a str,
            service: &'a str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            attributes: Option<Cow<'a, RawValue>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            trace_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            span_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            request_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            correlation_id: Option<&'a str>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            repaired: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            raw: Option<&'a str>,
        }
        let record = &self.record;
        let view = View {
            seq: self.seq,
            id: record.id,
            time: record.time,
            arrived: record.arrived,
            severity: record.severity,
            level: &record.level,
            service: &record.service,
            message: &record.message,
            attributes: (!record.attributes.is_empty()).then(|| record.attributes.to_raw()),
            trace_id: record.trace_id.as_deref(),
            span_id: record.span_id.as_deref(),
            request_id: record.request_id.as_deref(),
            correlation_id: record.correlation_id.as_deref(),
            repaired: record.repaired(),
            raw: record.raw.as_deref(),
        };
        view.serialize(serializer)
    }
}

impl Stored {
    /// Returns the record's position in the order of event time, see [`place_of`].
    pub fn place(&self) -> i64 {
        place_of(&self.record)
    }
}

/// Records that become durable in one transaction.
#[derive(Clone, Debug, Default)]
pub struct RecordBatch {
    /// Id of the delivery that contained the records, if it can be delivered again: the store skips a batch whose id
    /// it stored today or on the day before.
    pub delivery: Option<Uuid>,
    /// The records, in their order of arrival.
    pub records: Vec<LogRecord>,
}

/// The order of a query's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Latest event time first, by [`place_of`].
    #[default]
    Latest,
    /// Latest arrival first.
    Newest,
    /// First arrival first.
    Oldest,
}

/// A position between two records, in the order of the query that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The record's [place](Stored::place); only [`Order::Latest`] uses it.
    pub time: i64,
    /// Position in the order of arrival.
    pub seq: Seq,
}

impl Cursor {
    /// Returns the position after a record.
    pub fn after(stored: &Stored) -> Self {
        Self { time: stored.place(), seq: stored.seq }
    }
}

/// A query to the store.
#[derive(Clone, Debug)]
pub struct Query {
    /// The conditions of the records.
    pub filter: Filter,
    /// The order of the result.
    pub order: Order,
    /// Return only the records after this position in that order.
    pub after: Option<Cursor>,
    /// Number of matching records to skip first.
    pub skip: u64,
    /// Maximum number of records; default 0.
    pub limit: usize,
    /// Maximum size of the returned records in bytes, by the length of their texts: the result is held in memory. The
    /// first record is returned whatever its size. Default 8 MiB.
    pub bytes: usize,
}

impl Default for Query {
    fn default() -> Self {
        let (filter, order) = (Filter::default(), Order::default());
        Self { filter, order, after: None, skip: 0, limit: 0, bytes: 8 * 1024 * 1024 }
    }
}

/// The result of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The records, in the order of the query.
    pub records: Vec<Stored>,
    /// Whether [`Query::bytes`] ended the result before its limit: more records follow the last one.
    pub partial: bool,
}

/// The name under which [`LogStore::counts`] counts the records of services that exceed the bound on the number of
/// names, or whose name is too long.
pub const OTHERS: &str = "(others)";

/// Number of records of each service.
pub type Counts = BTreeMap<String, u64>;

/// A store of log records. `tests/it/exam.rs` tests every guarantee; each implementation has to pass it.
///
/// One writer appends at a time; queries can run at the same time.
pub trait LogStore: Send + Sync + fmt::Debug + 'static {
    /// Stores every record of every batch, or none and returns an error. When it returns, the records survive a crash
    /// and a power failure. Returns the stored records with their numbers; batches that were delivered before are not
    /// included.
    fn append(&self, groups: Vec<RecordBatch>) -> BoxFuture<'_, Result<Vec<Stored>>>;

    /// Returns the records that match a query, in its order.
    fn select(&self, query: Query) -> BoxFuture<'_, Result<Page>>;

    /// Returns the number of records of each service. The size is bounded: services beyond the bound are counted
    /// under [`OTHERS`].
    fn counts(&self) -> BoxFuture<'_, Result<Counts>>;

    /// Deletes the records of one service, or all records; returns the number of deleted records.
    fn clear(&self, service: Option<String>) -> BoxFuture<'_, Result<u64>>;

    /// Closes the files. Later calls return an error.
    fn close(&self) -> BoxFuture<'_, ()>;
}
