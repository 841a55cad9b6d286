//! Converts rows to records.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Error, ErrorKind, Result,
    store::{Json, ScheduleRecord, TaskRecord, WorkerRecord, from_ms},
};

/// Parses a column with JSON that this crate wrote; any other content is damage.
fn json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T> {
    serde_json::from_str(row.get::<&str, _>(column)).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("column {column} does not hold the expected json"))
            .because(error)
    })
}

/// JSON from a caller. A text that is not JSON is shown as a string, so that an operator sees why it does not
/// decode.
fn given(text: &str) -> Json {
    Json::parse(text).unwrap_or_else(|_| Json::string(text))
}

/// A count. A value that no build of this crate wrote is shown as the nearest valid one.
fn count(row: &SqliteRow, column: &str) -> u32 {
    row.get::<i64, _>(column).clamp(0, i64::from(u32::MAX)) as u32
}

fn time(row: &SqliteRow, column: &str) -> Option<Timestamp> {
    row.get::<Option<i64>, _>(column).map(from_ms)
}

pub(super) fn task(row: &SqliteRow) -> Result<TaskRecord> {
    Ok(TaskRecord {
        id: row.get("id"),
        name: row.get("name"),
        queue: row.get("queue"),
        state: row.get::<String, _>("state").parse()?,
        args: given(row.get("args")),
        kwargs: row.get::<Option<&str>, _>("kwargs").map(given),
        priority: row.get::<i64, _>("priority").clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32,
        created: from_ms(row.get("created")),
        due: from_ms(row.get("due")),
        expires: time(row, "expires"),
        errors: count(row, "errors"),
        crashes: count(row, "crashes"),
        max_retries: count(row, "max_retries"),
        max_crashes: count(row, "max_crashes"),
        unique: row.get("unique_key"),
        headers: json(row, "headers").unwrap_or_default(),
        worker: row.get("worker"),
        fence: row.get("fence"),
        started: time(row, "started"),
        finished: time(row, "finished"),
        cancel_requested: row.get("cancel"),
        result: row.get::<Option<&str>, _>("result").map(given),
        error: row.get("error"),
        attempts: json(row, "attempts").unwrap_or_default(),
        attempts_dropped: u64::from(count(row, "dropped")),
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
