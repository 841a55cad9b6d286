//! A record as Logthon shows it: six keys, its time the server's local one without a zone.

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
    /// Only on what Logthon would have refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repaired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
}

/// The entry as JSON.
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

/// `2026-01-31T12:00:00.000042`, the server's local time.
pub(crate) fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}
