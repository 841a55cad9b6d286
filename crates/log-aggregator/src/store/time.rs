//! The place of a record in the order of event time.

use event_client::log::LogRecord;
use jiff::Timestamp;

/// Returns a record's position in the order of event time, in nanoseconds since 1970: its event time, but no later
/// than its arrival. An event cannot happen after its record arrived; without this limit, records of a sender whose
/// clock is years ahead would fill the first page for years.
pub fn place_of(record: &LogRecord) -> i64 {
    nanoseconds(record.arrived.map_or(record.time, |arrived| record.time.min(arrived)))
}

/// Converts a time to nanoseconds since 1970, as stores and cursors count it. A time before 1677 or after 2262
/// becomes the nearest representable value.
pub(crate) fn nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}
