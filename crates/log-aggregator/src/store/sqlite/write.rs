//! Writes many records with few SQL statements, all in one transaction.

use std::collections::HashMap;
use std::sync::LazyLock;

use event_client::log::LogRecord;
use jiff::Timestamp;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};
use sqlx::{Connection, SqliteConnection};

use super::day::{Day, failed};
use crate::error::Result;
use crate::store::filter::attributes_text;
use crate::store::{RecordBatch, Seq, Stored, nanoseconds};

const COLUMNS: usize = 15;
/// Numbers of rows per statement. A few fixed numbers, so that each statement is prepared once; a statement with
/// hundreds of rows takes a tenth of the time of as many single-row statements.
const SHAPES: [usize; 4] = [128, 16, 4, 1];
static STATEMENTS: LazyLock<[String; SHAPES.len()]> = LazyLock::new(|| SHAPES.map(insert_of));

fn insert_of(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMNS].join(","));
    format!("INSERT INTO records VALUES {}", vec![row; rows].join(","))
}

/// Stores the batches in one transaction. `earlier` is the day before, whose batches may be delivered again.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    earlier: Option<&Day>,
    groups: Vec<RecordBatch>,
    first: Seq,
    now: Timestamp,
) -> Result<Vec<Stored>> {
    let what = "cannot store log records";
    let mut writing = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|e| failed(what, e))?;
    let mut kept = Vec::with_capacity(groups.iter().map(|group| group.records.len()).sum());
    for group in groups {
        if let Some(delivery) = group.delivery {
            let id = delivery.as_bytes().to_vec();
            if let Some(day) = earlier {
                let seen =
                    sqlx::query_scalar::<_, i64>("SELECT 1 FROM deliveries WHERE id = ?").bind(id.clone());
                if seen.fetch_optional(&day.readers).await.map_err(|e| failed(what, e))?.is_some() {
                    continue;
                }
            }
            let new = sqlx::query("INSERT OR IGNORE INTO deliveries VALUES (?)").bind(id);
            if new.execute(&mut *writing).await.map_err(|e| failed(what, e))?.rows_affected() == 0 {
                continue;
            }
        }
        for mut record in group.records {
            record.arrived = Some(now);
            kept.push(Stored { seq: first + kept.len() as Seq, record });
        }
    }
    let mut rest = kept.as_slice();
    for (rows, statement) in SHAPES.iter().zip(STATEMENTS.iter()) {
        while let Some((chunk, after)) = rest.split_at_checked(*rows) {
            let insert = chunk.iter().fold(sqlx::query(statement.as_str()), bind);
            insert.execute(&mut *writing).await.map_err(|e| failed(what, e))?;
            rest = after;
        }
    }
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for stored in &kept {
        *counts.entry(&stored.record.service).or_default() += 1;
    }
    for (service, count) in counts {
        let sql =
            "INSERT INTO services VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count";
        let counting = sqlx::query(sql).bind(service).bind(count);
        counting.execute(&mut *writing).await.map_err(|e| failed(what, e))?;
    }
    writing.commit().await.map_err(|e| failed(what, e))?;
    Ok(kept)
}

fn bind<'q>(
    insert: Query<'q, Sqlite, SqliteArguments>,
    stored: &'q Stored,
) -> Query<'q, Sqlite, SqliteArguments> {
    let LogRecord { id, time, severity, level, service, message, trace_id, span_id, .. } = &stored.record;
    let LogRecord { request_id, correlation_id, raw, arrived, .. } = &stored.record;
    let place = stored.place();
    insert
        .bind(stored.seq)
        .bind(id.as_bytes().as_slice())
        .bind(place)
        .bind(arrived.map(nanoseconds))
        .bind(severity.number())
        .bind(level)
        .bind(service)
        .bind(message)
        .bind(attributes_text(&stored.record))
        .bind(trace_id)
        .bind(span_id)
        .bind(request_id)
        .bind(correlation_id)
        .bind(raw)
        .bind((time.as_nanosecond() != i128::from(place)).then(|| time.to_string()))
}

/// Deletes the records of one service, or all records, from a day's file; returns their number.
pub(super) async fn clear(connection: &mut SqliteConnection, service: Option<&str>) -> Result<u64> {
    let what = "cannot clear log records";
    let mut writing = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|e| failed(what, e))?;
    let (records, counts) = match service {
        Some(name) => (
            sqlx::query("DELETE FROM records WHERE service = ?").bind(name),
            sqlx::query("DELETE FROM services WHERE name = ?").bind(name),
        ),
        None => (sqlx::query("DELETE FROM records"), sqlx::query("DELETE FROM services")),
    };
    let removed = records.execute(&mut *writing).await.map_err(|e| failed(what, e))?.rows_affected();
    counts.execute(&mut *writing).await.map_err(|e| failed(what, e))?;
    writing.commit().await.map_err(|e| failed(what, e))?;
    if service.is_none() {
        // VACUUM frees the space on the disk. It may fail on a full disk; the records are deleted in any case.
        if let Err(error) = sqlx::query("VACUUM").execute(connection).await {
            tracing::warn!(%error, "cannot shrink the file of a cleared day");
        }
    }
    Ok(removed)
}
