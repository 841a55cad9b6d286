//! Writes a record in Logthon's format: six keys, the time in the server's local zone without an offset.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::store::Stored;

#[derive(Serialize)]
struct Entry<'a> {
    id: Uuid,
    timestamp: String,
    service: &'a str,
    level: &'a str,
    message: &'a str,
    metadata: Cow<'a, RawValue>,
    /// Present only on records that Logthon would have refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repaired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
}

/// Returns the entry as JSON.
pub(crate) fn text_of(stored: &Stored) -> String {
    let record = &stored.record;
    let entry = Entry {
        id: record.id,
        timestamp: local(record.arrived.unwrap_or(record.time)),
        service: &record.service,
        level: &record.level,
        message: &record.message,
        metadata: record.attributes.to_raw(),
        repaired: record.repaired(),
        raw: record.raw.as_deref(),
    };
    serde_json::to_string(&entry).expect("an entry is JSON")
}

/// Formats a time in the server's local zone: `2026-01-31T12:00:00.000042`.
pub(crate) fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}
