//! Parses the time of a record in all usual formats, without floating point.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::fmt::{rfc2822, strtime};
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The first second after the year 9999: smaller numbers are seconds, numbers smaller than a thousand times this are
/// milliseconds, and so on to nanoseconds. So each unit covers times up to the year 9999, and all units but seconds
/// begin in 1978.
const SECONDS_END: u128 = 253_402_300_800;
/// Numbers of fewer seconds (before March 1973) are not times: they are clocks that count from the start of a
/// machine, durations, or zeros.
const LEAST_SECONDS: i128 = 100_000_000;
/// A number with more digits than this is not a time.
const MOST_DIGITS: usize = 36;

/// Returns the time that a JSON value contains; `None` when its format is unknown.
///
/// Numbers, also as text, count from 1970 in seconds, milliseconds, microseconds or nanoseconds; their size
/// determines the unit. Texts are RFC 3339 and ISO 8601 (`2026-11-30 12:00:00,123` of Python's logging, any number of
/// digits, any offset), RFC 2822, and the formats of Apache, Go and `date`. A time without a zone is read as UTC.
/// Objects are those of log4j2 (`epochSecond`, `nanoOfSecond`), of protobuf (`seconds`, `nanos`) and of MongoDB
/// (`$date`).
pub(crate) fn of_json(json: &str) -> Option<Timestamp> {
    match json.bytes().next()? {
        b'"' => of_text(&serde_json::from_str::<Cow<'_, str>>(json).ok()?),
        b'{' => of_object(json),
        _ => of_number(json),
    }
}

/// Returns the time that a text contains.
pub(crate) fn of_text(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).trim();
    if let Some(time) = of_number(text) {
        return Some(time);
    }
    if text.len() > 64 || !text.is_ascii() {
        return None;
    }
    // Go appends the reading of its monotonic clock, and the name of the zone after the offset.
    let text = text.split(" m=").next()?.trim_end_matches(" UTC");
    let iso = iso(text);
    let civil = || {
        let civil: DateTime = iso.parse().ok()?;
        Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
    };
    iso.parse()
        .ok()
        .or_else(civil)
        .or_else(|| rfc2822::parse(text).ok().map(|zoned| zoned.timestamp()))
        .or_else(|| other(text))
}

/// Normalises a text to ISO 8601: a comma before fractions becomes a point, digits after the ninth are removed,
/// slashes become dashes, and the space before the offset is removed.
fn iso(text: &str) -> String {
    let mut iso = String::with_capacity(text.len());
    let mut digits = None;
    for (at, sign) in text.bytes().enumerate() {
        let between_digits = at > 0 && text.as_bytes()[at - 1].is_ascii_digit();
        match sign {
            b'.' | b',' if between_digits => {
                digits = Some(0);
                iso.push('.');
            }
            b'0'..=b'9' if digits.is_some_and(|digits| digits >= 9) => {}
            b'0'..=b'9' => {
                digits = digits.map(|digits| digits + 1);
                iso.push(sign.into());
            }
            b'/' if matches!(at, 4 | 7) => iso.push('-'),
            b' ' if at > 10 && matches!(text.as_bytes().get(at + 1), Some(b'+' | b'-' | b'Z')) => {
                digits = None
            }
            _ => {
                digits = None;
                iso.push(sign.into());
            }
        }
    }
    iso
}

/// Parses other well-known formats.
fn other(text: &str) -> Option<Timestamp> {
    const ZONED: [&str; 2] = [
        "%d/%b/%Y:%H:%M:%S %z",    // Apache and nginx, access log
        "%a %b %d %H:%M:%S %z %Y", // Ruby, Twitter
    ];
    const CIVIL: [&str; 4] = [
        "%a %b %d %H:%M:%S%.f %Y",  // C's ctime, Apache's error log
        "%a %b %d %H:%M:%S UTC %Y", // `date`
        "%d/%b/%Y:%H:%M:%S",
        "%d/%b/%Y %H:%M:%S%.f",
    ];
    let zoned = ZONED.iter().find_map(|format| strtime::parse(format, text).ok()?.to_timestamp().ok());
    zoned.or_else(|| {
        let civil = CIVIL.iter().find_map(|format| strtime::parse(format, text).ok()?.to_datetime().ok())?;
        Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

/// Parses a decimal number digit by digit: nanoseconds since 1970 have more digits than a double can hold.
fn of_number(text: &str) -> Option<Timestamp> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // Digits beyond nanoseconds are not needed, and the number has to fit into an `i128`.
    let fraction = fraction.get(..fraction.len().min(18))?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || whole.len() + fraction.len() > MOST_DIGITS {
        return None;
    }
    if let Some(time) = compact(whole, text) {
        return Some(time);
    }
    let number: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let unit = (0..4).find(|unit| below(number, places, SECONDS_END * 1000_u128.pow(*unit)))?;
    let nanoseconds = scaled(number, places + 9 - 3 * i32::try_from(unit).ok()?)?;
    if nanoseconds < LEAST_SECONDS * 1_000_000_000 {
        return None;
    }
    Timestamp::from_nanosecond(nanoseconds).ok()
}

/// Parses `20261130120000`: fourteen digits that form a date of this century are not milliseconds.
fn compact(whole: &str, text: &str) -> Option<Timestamp> {
    if whole.len() != 14 || whole != text || !whole.starts_with("20") {
        return None;
    }
    let part = |from: usize, to: usize| whole[from..to].parse::<i8>().ok();
    let date = Date::new(whole[..4].parse().ok()?, part(4, 6)?, part(6, 8)?).ok()?;
    let time = jiff::civil::Time::new(part(8, 10)?, part(10, 12)?, part(12, 14)?, 0).ok()?;
    Some(date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn below(number: i128, places: i32, bound: u128) -> bool {
    scaled(number, places).is_some_and(|whole| whole.unsigned_abs() < bound)
}

/// Returns the number times ten to the power of `places`, without the fraction.
fn scaled(number: i128, places: i32) -> Option<i128> {
    let power = 10_i128.checked_pow(places.unsigned_abs());
    if places >= 0 { number.checked_mul(power?) } else { Some(power.map_or(0, |power| number / power)) }
}

fn of_object(json: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(alias = "epochSecond")]
        seconds: Option<i64>,
        #[serde(alias = "nanoOfSecond")]
        nanos: Option<i32>,
        #[serde(rename = "$date", borrow)]
        date: Option<&'a RawValue>,
    }
    let parts: Parts<'_> = serde_json::from_str(json).ok()?;
    match (parts.seconds, parts.date) {
        (Some(seconds), _) => Timestamp::new(seconds, parts.nanos.unwrap_or(0)).ok(),
        // Only one level of nesting is read, so that the recursion is bounded.
        (None, Some(date)) if !date.get().starts_with('{') => of_json(date.get()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(alias: &str, expected: &str) {
        let found = of_json(alias);
        assert_eq!(found.map(|time| time.to_string()).as_deref(), Some(expected), "{alias}");
    }

    #[test]
    fn numbers_are_read_in_every_unit_to_the_last_digit() {
        for (alias, expected) in [
            ("1767225600", "2026-01-01T00:00:00Z"),
            ("\"1767225600\"", "2026-01-01T00:00:00Z"),
            ("1767225600.5", "2026-01-01T00:00:00.5Z"),
            ("1767225600.123456789", "2026-01-01T00:00:00.123456789Z"),
            ("\"1767225600.1234567891234567891234\"", "2026-01-01T00:00:00.123456789Z"),
            ("1.7672256005E9", "2026-01-01T00:00:00.5Z"),
            ("1767225600500", "2026-01-01T00:00:00.5Z"),
            ("1767225600500.25", "2026-01-01T00:00:00.50025Z"),
            ("\"1767225600500\"", "2026-01-01T00:00:00.5Z"),
            ("1767225600500001", "2026-01-01T00:00:00.500001Z"),
            ("1767225600500000001", "2026-01-01T00:00:00.500000001Z"),
            ("\"1767225600500000001\"", "2026-01-01T00:00:00.500000001Z"),
            ("253402207200999", "9999-12-30T22:00:00.999Z"),
            ("253402207200", "9999-12-30T22:00:00Z"),
            ("253402207200999999", "9999-12-30T22:00:00.999999Z"),
            ("100000000", "1973-03-03T09:46:40Z"),
            ("20261130120000", "2026-11-30T12:00:00Z"),
            ("\" 20261130120000 \"", "2026-11-30T12:00:00Z"),
        ] {
            is(alias, expected);
        }
    }

    #[test]
    fn texts_are_read_as_loggers_write_them() {
        for (alias, expected) in [
            ("2026-11-30T12:00:00.016764227Z", "2026-11-30T12:00:00.016764227Z"),
            ("2026-11-30T12:00:00.1234567899999Z", "2026-11-30T12:00:00.123456789Z"),
            ("2026-11-30T12:00:00.12345678901+01:00", "2026-11-30T11:00:00.123456789Z"),
            ("2026-11-30T12:00:00.500", "2026-11-30T12:00:00.5Z"),
            ("2026-11-30 12:00:00,123", "2026-11-30T12:00:00.123Z"),
            ("2026-11-30 12:00:00,123 +0100", "2026-11-30T11:00:00.123Z"),
            ("2026-11-30T12:00:00.000+0000", "2026-11-30T12:00:00Z"),
            ("2026-11-30T12:00:00-0530", "2026-11-30T17:30:00Z"),
            ("2026-11-30T12:00:00+02", "2026-11-30T10:00:00Z"),
            ("2026-11-30t12:00:00z", "2026-11-30T12:00:00Z"),
            ("2026-11-30 12:00", "2026-11-30T12:00:00Z"),
            ("2026-11-30T12:00:00+01:00[Europe/Berlin]", "2026-11-30T11:00:00Z"),
            ("20261130T120000Z", "2026-11-30T12:00:00Z"),
            ("2026/11/30 12:00:00", "2026-11-30T12:00:00Z"),
            ("2026-11-30 12:00:00.123456789 +0000 UTC", "2026-11-30T12:00:00.123456789Z"),
            ("2026-11-30 12:00:00.1 +0000 UTC m=+0.000012345", "2026-11-30T12:00:00.1Z"),
            ("Mon, 30 Nov 2026 12:00:00 +0100", "2026-11-30T11:00:00Z"),
            ("Mon, 30 Nov 2026 12:00:00 GMT", "2026-11-30T12:00:00Z"),
            ("30/Nov/2026:12:00:00 +0100", "2026-11-30T11:00:00Z"),
            ("[30/Nov/2026:12:00:00 +0000]", "2026-11-30T12:00:00Z"),
            ("Mon Nov 30 12:00:00 2026", "2026-11-30T12:00:00Z"),
            ("Mon Nov 30 12:00:00.123456 2026", "2026-11-30T12:00:00.123456Z"),
            ("Mon Nov 30 12:00:00 UTC 2026", "2026-11-30T12:00:00Z"),
            ("Mon Nov 30 12:00:00 +0100 2026", "2026-11-30T11:00:00Z"),
            ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59Z"),
            ("9999-01-01T00:00:00Z", "9999-01-01T00:00:00Z"),
        ] {
            is(&format!("\"{alias}\""), expected);
        }
        is(r#"{"epochSecond":1511962690,"nanoOfSecond":11000000}"#, "2017-11-29T13:38:10.011Z");
        is(r#"{"seconds":1767225600,"nanos":5}"#, "2026-01-01T00:00:00.000000005Z");
        is(r#"{"$date":"2026-01-01T00:00:00Z"}"#, "2026-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_time_is_none() {
        for none in [
            "\"yesterday\"",
            "\"\"",
            "\"-\"",
            "null",
            "true",
            "[]",
            "{}",
            "0",
            "12.5",
            "-1767225600",
            "1e40",
            "1e-40",
            "1e999999999999",
            "\"123456789012345678901234567890\"",
            "1e9x",
            "\"12:00:00\"",
            "\"2026-13-01T00:00:00Z\"",
            r#"{"$date":{"$date":1767225600}}"#,
            r#"{"seconds":9223372036854775807}"#,
            "\"\u{661}\u{662}\"",
        ] {
            assert_eq!(of_json(none), None, "{none}");
        }
        let long = format!("\"{}\"", "2".repeat(10_000));
        assert_eq!(of_json(&long), None);
    }
}
