//! Where records are kept: the store's contract, the questions one can ask it, and the stores.

mod filter;
pub(crate) mod search;
mod sqlite;

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

/// A record's place in the order of arrival: unique, growing, microseconds since 1970 nudged apart when
/// several arrive at once. Small enough for a JavaScript number.
pub type Seq = i64;

/// A record as it lies in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its place in the order of arrival.
    pub seq: Seq,
    /// The record; its arrival time is set.
    pub record: LogRecord,
}

/// The record's fields as JSON with `seq` beside them, and `repaired` when it was. The attributes stand there as they
/// were sent, in their order and with all their digits; JSON alone can say that.
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
    /// Where the record stands in the order of event time, see [`place_of`].
    pub fn place(&self) -> i64 {
        place_of(&self.record)
    }
}

/// Records that become durable together.
#[derive(Clone, Debug, Default)]
pub struct RecordBatch {
    /// Names the delivery that brought the records, if it can come twice: a group whose name the store has
    /// seen in the last day or two is left out.
    pub delivery: Option<Uuid>,
    /// The records, in the order in which they count as having arrived.
    pub records: Vec<LogRecord>,
}

/// Where a record stands in the order of event time: nanoseconds since 1970 of its event time, but no later than its
/// arrival. Nothing happens after it was told: a sender whose clock is years ahead would fill the first page for years.
pub fn place_of(record: &LogRecord) -> i64 {
    nanoseconds(record.arrived.map_or(record.time, |arrived| record.time.min(arrived)))
}

/// A time as stores and cursors count it. Times before 1677 or after 2262 are moved to those ends.
pub(crate) fn nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// Which end of the store a query starts from.
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

/// A place between two records, in the order of the query it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The record's [place](Stored::place); only [`Order::Latest`] looks at it.
    pub time: i64,
    /// Place in the order of arrival.
    pub seq: Seq,
}

impl Cursor {
    /// The place after a record.
    pub fn after(stored: &Stored) -> Self {
        Self { time: stored.place(), seq: stored.seq }
    }
}

/// A question to the store.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which records.
    pub filter: Filter,
    /// In what order.
    pub order: Order,
    /// Only what comes after this place in that order.
    pub after: Option<Cursor>,
    /// How many of the answer to leave out first.
    pub skip: u64,
    /// How many at most; default none.
    pub limit: usize,
    /// How many bytes of records at most, by the size of their texts: the answer is held in memory. The first record
    /// is answered however large it is. Default 8 MiB.
    pub bytes: usize,
}

impl Default for Query {
    fn default() -> Self {
        let (filter, order) = (Filter::default(), Order::default());
        Self { filter, order, after: None, skip: 0, limit: 0, bytes: 8 * 1024 * 1024 }
    }
}

/// What a query found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The records, in the order of the query.
    pub records: Vec<Stored>,
    /// Whether [`Query::bytes`] ended the answer before its limit: there are more after the last record.
    pub partial: bool,
}

/// The name under which [`LogStore::counts`] has the records of services that are too many, or whose names are too
/// long, to be counted each by its own.
pub const OTHERS: &str = "(others)";

/// How many records each service has.
pub type Counts = BTreeMap<String, u64>;

/// A place that keeps log records. `tests/it/exam.rs` states every promise as a case; each store takes it.
///
/// One writer appends at a time; questions may be asked meanwhile.
pub trait LogStore: Send + Sync + fmt::Debug + 'static {
    /// Keeps every record of every group, or none and says why. When it returns, they survive a crash and a
    /// power cut. Answers what was kept, numbered: repeated deliveries are missing from it.
    fn append(&self, groups: Vec<RecordBatch>) -> BoxFuture<'_, Result<Vec<Stored>>>;

    /// The records that a query asks for, in its order.
    fn select(&self, query: Query) -> BoxFuture<'_, Result<Page>>;

    /// How many records there are, by service. Bounded in size: what is too much to be named is under [`OTHERS`].
    fn counts(&self) -> BoxFuture<'_, Result<Counts>>;

    /// Removes one service's records, or everyone's; answers how many those were.
    fn clear(&self, service: Option<String>) -> BoxFuture<'_, Result<u64>>;

    /// Closes the files. What comes afterwards is answered with an error.
    fn close(&self) -> BoxFuture<'_, ()>;
}
