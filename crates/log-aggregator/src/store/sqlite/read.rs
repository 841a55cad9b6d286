//! Runs a query: translates it to SQL for each day's file and merges the results of the days.
//!
//! It first reads only positions and sizes, to know how many records fit before any of them is in memory; then it
//! reads the records themselves.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use event_client::log::{Attributes, LogRecord, Severity};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::day::{Day, failed};
use crate::error::Result;
use crate::store::search::Search;
use crate::store::{Filter, Order, Page, Query, Seq, Stored, nanoseconds};

type SqlResult<T> = std::result::Result<T, sqlx::Error>;

/// Bytes that count for each record in addition to its texts.
const OVERHEAD: usize = 256;

/// Sum of the sizes of a row's texts. SQLite computes them without reading the texts.
const BYTES: &str = "octet_length(service) + octet_length(level) + octet_length(message) + octet_length(attributes) \
     + coalesce(octet_length(trace_id), 0) + coalesce(octet_length(span_id), 0) \
     + coalesce(octet_length(request_id), 0) + coalesce(octet_length(correlation_id), 0) \
     + coalesce(octet_length(raw), 0)";

/// The columns of a row that are searched, the attributes last.
const SEARCHED: &str = "service, level, message, trace_id, span_id, request_id, correlation_id, attributes";

/// The position and size of a record that matches a query.
struct Found {
    day: usize,
    time: i64,
    seq: Seq,
    bytes: usize,
}

/// Runs a query on the days, which are given oldest first.
pub(super) async fn select(days: &[Arc<Day>], mut query: Query) -> Result<Page> {
    query.bytes = query.bytes.max(1);
    let found = match query.order {
        Order::Oldest => by_arrival(days.iter().enumerate(), &query).await?,
        Order::Newest => by_arrival(days.iter().enumerate().rev(), &query).await?,
        Order::Latest => by_time(days, &query).await?,
    };
    let mut left = query.bytes;
    let fits = |found: &&Found| {
        let fits = found.bytes <= left;
        left = left.saturating_sub(found.bytes);
        fits
    };
    // The first record always fits, see `found_in`: a client that pages through the results has to make progress.
    let count = found.iter().take_while(fits).count();
    Ok(Page { records: fetch(days, &found[..count]).await?, partial: count < found.len() })
}

/// Days are ordered by arrival: reads one day after the other until enough records are found.
async fn by_arrival<'a>(
    days: impl Iterator<Item = (usize, &'a Arc<Day>)>,
    query: &Query,
) -> Result<Vec<Found>> {
    let mut found: Vec<Found> = Vec::new();
    let mut skip = query.skip;
    for (place, day) in days {
        let bytes: usize = found.iter().map(|found| found.bytes).sum();
        if found.len() >= query.limit || bytes > query.bytes {
            break;
        }
        let most = Most { rows: query.limit - found.len(), bytes: query.bytes - bytes };
        found.extend(scan(place, day, query, &mut skip, most).await?);
    }
    Ok(found)
}

/// A day of arrival can contain records of any event time: reads the days that can contain matches and sorts the
/// results, the latest first.
async fn by_time(days: &[Arc<Day>], query: &Query) -> Result<Vec<Found>> {
    let since = query.filter.since.map(nanoseconds);
    let until = query.filter.until.map(nanoseconds);
    let reach = query.after.map_or(i64::MAX, |cursor| cursor.time);
    let mut order: Vec<_> = days.iter().enumerate().filter(|(_, day)| day.overlaps(since, until)).collect();
    order.sort_by_key(|(_, day)| Reverse(day.latest()));
    let skip = usize::try_from(query.skip).unwrap_or(usize::MAX);
    // Skipped records do not count for the size, and only the complete result shows which records are skipped.
    let most = Most {
        rows: query.limit.saturating_add(skip),
        bytes: if skip == 0 { query.bytes } else { usize::MAX },
    };
    let mut found: Vec<Found> = Vec::new();
    for (place, day) in order {
        let enough =
            most.are_reached(&found) && found.last().is_none_or(|last| last.time > day.latest().min(reach));
        if enough {
            break;
        }
        found.extend(scan(place, day, query, &mut 0, most).await?);
        found.sort_by_key(|found| Reverse((found.time, found.seq)));
        most.cut(&mut found);
    }
    found.drain(..skip.min(found.len()));
    Ok(found)
}

/// Limits of a search.
#[derive(Clone, Copy)]
struct Most {
    rows: usize,
    bytes: usize,
}

impl Most {
    fn are_reached(self, found: &[Found]) -> bool {
        found.len() >= self.rows || found.iter().map(|found| found.bytes).sum::<usize>() > self.bytes
    }

    /// Keeps the records within the limits; the last one may be the first that exceeds the size.
    fn cut(self, found: &mut Vec<Found>) {
        found.truncate(self.rows);
        let mut bytes = 0;
        let fitting = found.iter().take_while(|found| {
            let fits = bytes <= self.bytes;
            bytes += found.bytes;
            fits
        });
        let count = fitting.count();
        found.truncate(count);
    }
}

async fn count(day: &Day, query: &Query) -> Result<u64> {
    let mut sql = QueryBuilder::new("SELECT count(*) FROM records");
    conditions(&mut sql, query, &Search::new(&[]));
    let counting = sql.build_query_scalar::<i64>().fetch_one(&day.readers);
    let count = counting.await.map_err(|e| failed(&format!("cannot count in {}", day.path.display()), e))?;
    Ok(count.unsigned_abs())
}

/// Finds a day's records in the order of the query, after skipping `skip` of them; `skip` keeps the number that is
/// left to skip in other days. The last record may be the first that exceeds the size.
async fn scan(place: usize, day: &Day, query: &Query, skip: &mut u64, most: Most) -> Result<Vec<Found>> {
    let search = Search::new(&query.filter.words);
    let mut sql = QueryBuilder::new("SELECT time, seq, ");
    sql.push(BYTES);
    if !search.is_empty() {
        sql.push(", ").push(SEARCHED);
    }
    sql.push(" FROM records");
    conditions(&mut sql, query, &search);
    sql.push(match query.order {
        Order::Latest => " ORDER BY time DESC, seq DESC",
        Order::Newest => " ORDER BY seq DESC",
        Order::Oldest => " ORDER BY seq",
    });
    // SQL can skip and limit only by conditions that it evaluates itself; words are searched below.
    if search.is_empty() {
        sql.push(" LIMIT ").push_bind(i64::try_from(most.rows).unwrap_or(i64::MAX));
        sql.push(" OFFSET ").push_bind(i64::try_from(*skip).unwrap_or(i64::MAX));
    }
    let what = |e| failed(&format!("cannot read {}", day.path.display()), e);
    let mut rows = sql.build().fetch(&day.readers);
    let (mut found, mut bytes) = (Vec::new(), 0);
    while found.len() < most.rows && bytes <= most.bytes {
        let Some(row) = rows.try_next().await.map_err(what)? else { break };
        if !search.is_empty() {
            if !says(&row, &search).map_err(what)? {
                continue;
            }
            if *skip > 0 {
                *skip -= 1;
                continue;
            }
        }
        let one = found_in(place, &row, query.bytes).map_err(what)?;
        bytes += one.bytes;
        found.push(one);
    }
    drop(rows);
    if search.is_empty() && *skip > 0 {
        // The number of skipped records matters only when no record follows them.
        *skip = if found.is_empty() { *skip - count(day, query).await?.min(*skip) } else { 0 };
    }
    Ok(found)
}

/// A record counts at most as the size of the whole result: a larger record is returned alone, because no record fits
/// after it.
fn found_in(day: usize, row: &SqliteRow, whole: usize) -> SqlResult<Found> {
    let bytes = usize::try_from(row.try_get::<i64, _>(2)?).unwrap_or(0) + OVERHEAD;
    let bytes = bytes.min(whole);
    Ok(Found { day, time: row.try_get(0)?, seq: row.try_get(1)?, bytes })
}

/// Returns whether a row of a scan contains all words, by the rule of the live filter.
fn says(row: &SqliteRow, search: &Search) -> SqlResult<bool> {
    let mut texts: [&str; 7] = [""; 7];
    for (place, text) in texts.iter_mut().enumerate() {
        *text = row.try_get::<Option<&str>, _>(3 + place)?.unwrap_or_default();
    }
    let attributes = Attributes::from_json(row.try_get(10)?).map_err(|e| sqlx::Error::Decode(e.into()))?;
    Ok(search.finds(texts, &attributes))
}

/// Reads the records at the given positions, in that order. A record that was cleared meanwhile is missing.
async fn fetch(days: &[Arc<Day>], found: &[Found]) -> Result<Vec<Stored>> {
    let mut records = HashMap::with_capacity(found.len());
    for (place, day) in days.iter().enumerate() {
        let here: Vec<Seq> = found.iter().filter(|found| found.day == place).map(|found| found.seq).collect();
        if here.is_empty() {
            continue;
        }
        // One statement for any number of records.
        let mut sql = QueryBuilder::new(
            "SELECT seq, id, time, arrived, severity, level, service, message, attributes, \
             trace_id, span_id, request_id, correlation_id, raw, ",
        );
        sql.push(day.said()).push(" FROM records WHERE seq IN (SELECT value FROM json_each(");
        let here = serde_json::to_string(&here).expect("numbers are JSON");
        let what = |e| failed(&format!("cannot read {}", day.path.display()), e);
        sql.push_bind(here).push("))");
        let mut rows = sql.build().fetch(&day.readers);
        while let Some(row) = rows.try_next().await.map_err(what)? {
            let stored = stored_of(&row).map_err(what)?;
            records.insert(stored.seq, stored);
        }
    }
    Ok(found.iter().filter_map(|found| records.remove(&found.seq)).collect())
}

fn conditions(sql: &mut QueryBuilder<Sqlite>, query: &Query, search: &Search) {
    let Filter { services, severity, words: _, trace_id, request_id, correlation_id, since, until } =
        &query.filter;
    sql.push(" WHERE 1");
    if let Some((first, more)) = services.split_first() {
        sql.push(" AND service IN (").push_bind(first.clone());
        for service in more {
            sql.push(",").push_bind(service.clone());
        }
        sql.push(")");
    }
    if let Some(least) = severity {
        sql.push(" AND severity >= ").push_bind(least.number());
    }
    let ids = [("trace_id", trace_id), ("request_id", request_id), ("correlation_id", correlation_id)];
    for (column, id) in ids {
        if let Some(id) = id {
            sql.push(" AND ").push(column).push(" = ").push_bind(id.clone());
        }
    }
    if let Some(since) = since {
        sql.push(" AND time >= ").push_bind(nanoseconds(*since));
    }
    if let Some(until) = until {
        sql.push(" AND time < ").push_bind(nanoseconds(*until));
    }
    candidates(sql, search);
    if let Some(cursor) = query.after {
        match query.order {
            Order::Latest => {
                sql.push(" AND (time, seq) < (").push_bind(cursor.time);
                sql.push(", ").push_bind(cursor.seq).push(")")
            }
            Order::Newest => sql.push(" AND seq < ").push_bind(cursor.seq),
            Order::Oldest => sql.push(" AND seq > ").push_bind(cursor.seq),
        };
    }
}

/// Excludes rows that cannot contain all words, so that few rows have to be searched here. SQLite folds only ASCII
/// letters and sees attributes as JSON text: a row with other letters, or with an escape, is not excluded.
fn candidates(sql: &mut QueryBuilder<Sqlite>, search: &Search) {
    let mut words = search.plain().peekable();
    if words.peek().is_none() {
        return;
    }
    let whole = format!("concat_ws(char(10), {SEARCHED})");
    // `length` and `instr` stop at a NUL character.
    sql.push(format!(" AND (octet_length({whole}) <> length({whole}) OR instr(attributes, '\\') > 0 OR (1"));
    for word in words {
        sql.push(format!(" AND instr(lower({whole}), ")).push_bind(word.to_owned()).push(") > 0");
    }
    sql.push("))");
}

fn stored_of(row: &SqliteRow) -> SqlResult<Stored> {
    let undecodable = |e: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(e);
    let time = |column| -> SqlResult<Timestamp> {
        Timestamp::from_nanosecond(row.try_get::<i64, _>(column)?.into()).map_err(|e| undecodable(e.into()))
    };
    let record = LogRecord {
        id: Uuid::from_slice(row.try_get(1)?).map_err(|e| undecodable(e.into()))?,
        time: match row.try_get::<Option<&str>, _>(14)? {
            Some(said) => said.parse().map_err(|e: jiff::Error| undecodable(e.into()))?,
            None => time(2)?,
        },
        arrived: Some(time(3)?),
        severity: Severity::from(row.try_get::<u8, _>(4)?),
        level: row.try_get(5)?,
        service: row.try_get(6)?,
        message: row.try_get(7)?,
        attributes: Attributes::from_json(row.try_get(8)?).map_err(|e| undecodable(e.into()))?,
        trace_id: row.try_get(9)?,
        span_id: row.try_get(10)?,
        request_id: row.try_get(11)?,
        correlation_id: row.try_get(12)?,
        raw: row.try_get(13)?,
    };
    Ok(Stored { seq: row.try_get(0)?, record })
}
