//! Rows to records.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Error, ErrorKind, Result,
    store::{ScheduleRecord, TaskRecord, WorkerRecord, from_ms},
};

/// A column that holds JSON we wrote: anything else is damage.
fn json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T> {
    parse(&row.get::<String, _>(column), column)
}

fn parse<T: DeserializeOwned>(text: &str, column: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("column {column} holds no fitting json")).with(error)
    })
}

fn time(row: &SqliteRow, column: &str) -> Option<Timestamp> {
    row.get::<Option<i64>, _>(column).map(from_ms)
}

pub(super) fn task(row: &SqliteRow) -> Result<TaskRecord> {
    let args: String = row.get("args");
    Ok(TaskRecord {
        id: row.get("id"),
        name: row.get("name"),
        queue: row.get("queue"),
        state: row.get::<String, _>("state").parse()?,
        // What another program wrote is shown as it is, so that one can see why it does not decode.
        args: serde_json::from_str(&args).unwrap_or(serde_json::Value::String(args)),
        kwargs: row
            .get::<Option<String>, _>("kwargs")
            .map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
        priority: row.get("priority"),
        created: from_ms(row.get("created")),
        due: from_ms(row.get("due")),
        expires: time(row, "expires"),
        errors: row.get("errors"),
        crashes: row.get("crashes"),
        max_retries: row.get("max_retries"),
        max_crashes: row.get("max_crashes"),
        unique: row.get("unique_key"),
        headers: json(row, "headers")?,
        worker: row.get("worker"),
        fence: row.get("fence"),
        started: time(row, "started"),
        finished: time(row, "finished"),
        cancel_requested: row.get("cancel"),
        result: row.get::<Option<String>, _>("result").map(|text| parse(&text, "result")).transpose()?,
        error: row.get("error"),
        attempts: json(row, "attempts")?,
    })
}

pub(super) fn worker(row: &SqliteRow) -> Result<WorkerRecord> {
    Ok(WorkerRecord {
        info: json(row, "info")?,
        started: from_ms(row.get("started")),
        heartbeat: from_ms(row.get("heartbeat")),
        lease_until: from_ms(row.get("lease_until")),
        running: row.get::<i64, _>("running").unsigned_abs(),
    })
}

pub(super) fn schedule(row: &SqliteRow) -> Result<ScheduleRecord> {
    let plan: ScheduleRecord = json(row, "plan")?;
    Ok(ScheduleRecord {
        next: time(row, "next"),
        last: time(row, "last"),
        fired: row.get::<i64, _>("fired").unsigned_abs(),
        ..plan
    })
}
