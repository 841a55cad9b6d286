//! Reading: a query becomes SQL for each day's file, and the days' answers one answer.

use std::cmp::Reverse;
use std::sync::Arc;

use event_client::log::{Attributes, LogRecord, Severity};
use jiff::Timestamp;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::day::{Day, failed};
use crate::error::Result;
use crate::store::{Filter, Order, Query, Stored, nanoseconds};

/// Answers a query from the days, which come oldest first.
pub(super) async fn select(days: &[Arc<Day>], query: Query) -> Result<Vec<Stored>> {
    match query.order {
        Order::Oldest => by_arrival(days.iter(), query).await,
        Order::Newest => by_arrival(days.iter().rev(), query).await,
        Order::Latest => by_time(days, query).await,
    }
}

/// Days follow one another in the order of arrival: ask one after the other until there is enough.
async fn by_arrival(days: impl Iterator<Item = &Arc<Day>>, mut query: Query) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    for day in days {
        if found.len() >= query.limit {
            break;
        }
        if query.skip > 0 {
            let here = count(day, &query).await?;
            if here <= query.skip {
                query.skip -= here;
                continue;
            }
        }
        found.extend(ask(day, &query, query.skip, query.limit - found.len()).await?);
        query.skip = 0;
    }
    Ok(found)
}

/// A day of arrival can hold records of any time: ask those that may matter and sort, the latest first.
async fn by_time(days: &[Arc<Day>], query: Query) -> Result<Vec<Stored>> {
    let since = query.filter.since.map(nanoseconds);
    let until = query.filter.until.map(nanoseconds);
    let reach = query.after.map_or(i64::MAX, |cursor| cursor.time);
    let mut days: Vec<_> = days.iter().filter(|day| day.overlaps(since, until)).collect();
    days.sort_by_key(|day| Reverse(day.latest()));
    let wanted = query.limit.saturating_add(usize::try_from(query.skip).unwrap_or(usize::MAX));
    let mut found: Vec<Stored> = Vec::new();
    for day in days {
        let enough = found.len() >= wanted
            && found.get(wanted.saturating_sub(1)).is_none_or(|last| last.place() > day.latest().min(reach));
        if enough {
            break;
        }
        found.extend(ask(day, &query, 0, wanted).await?);
        found.sort_by_key(|stored| Reverse((stored.place(), stored.seq)));
        found.truncate(wanted);
    }
    Ok(found.into_iter().skip(usize::try_from(query.skip).unwrap_or(usize::MAX)).collect())
}

async fn count(day: &Day, query: &Query) -> Result<u64> {
    let mut sql = QueryBuilder::new("SELECT count(*) FROM records");
    conditions(&mut sql, query);
    let counting = sql.build_query_scalar::<i64>().fetch_one(&day.readers);
    let count = counting.await.map_err(|e| failed(&format!("cannot count in {}", day.path.display()), e))?;
    Ok(count.unsigned_abs())
}

async fn ask(day: &Day, query: &Query, skip: u64, limit: usize) -> Result<Vec<Stored>> {
    let mut sql = QueryBuilder::new(
        "SELECT seq, id, time, arrived, severity, level, service, message, attributes, \
         trace_id, span_id, request_id, correlation_id, raw, ",
    );
    sql.push(day.said()).push(" FROM records");
    conditions(&mut sql, query);
    sql.push(match query.order {
        Order::Latest => " ORDER BY time DESC, seq DESC",
        Order::Newest => " ORDER BY seq DESC",
        Order::Oldest => " ORDER BY seq",
    });
    sql.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    sql.push(" OFFSET ").push_bind(i64::try_from(skip).unwrap_or(i64::MAX));
    let reading = sql.build().fetch_all(&day.readers);
    let what = || format!("cannot read {}", day.path.display());
    let rows = reading.await.map_err(|e| failed(&what(), e))?;
    rows.iter().map(stored_of).collect::<std::result::Result<_, _>>().map_err(|e| failed(&what(), e))
}

fn conditions(sql: &mut QueryBuilder<Sqlite>, query: &Query) {
    let Filter { services, severity, words, trace_id, request_id, correlation_id, since, until } =
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
    for word in words {
        sql.push(" AND (instr(lower(message), ").push_bind(word.clone()).push(") > 0");
        sql.push(" OR instr(lower(attributes), ").push_bind(word.clone()).push(") > 0)");
    }
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

fn stored_of(row: &SqliteRow) -> std::result::Result<Stored, sqlx::Error> {
    let undecodable = |e: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(e);
    let time = |column| -> std::result::Result<Timestamp, sqlx::Error> {
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
