//! Reads and writes durations in human form: `30s`, `1500ms`, `2h 30m`, through jiff's friendly format.
//!
//! A setting of type `Duration` uses it with `#[serde(with = "settings::duration::text")]`.

use std::time::Duration;

use jiff::{SignedDuration, Span};

/// The longest duration that anything waits or is kept: 100 years of 365 days. Code that adds a user's duration to a
/// time reduces it to this one first, so that the sum cannot overflow.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Parses `30s`, `5 minutes`, `PT1M`; days are 24 hours. Returns `None` for any other text or for a negative
/// duration.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let length = match text.parse::<SignedDuration>() {
        Ok(length) => length,
        Err(_) => {
            let span: Span = text.parse().ok()?;
            span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?
        }
    };
    Duration::try_from(length).ok()
}

/// Formats a duration as the shortest text that [`parse`] reads back.
pub fn format(length: Duration) -> String {
    match SignedDuration::try_from(length) {
        Ok(length) => format!("{length:#}"),
        Err(_) => format!("{}s", length.as_secs()),
    }
}

/// Formats a duration for people: whole days as `7d`.
pub fn in_days(length: Duration) -> String {
    const DAY: u64 = 86_400;
    match length.as_secs() {
        secs if secs >= DAY && length == Duration::from_secs(secs / DAY * DAY) => format!("{}d", secs / DAY),
        _ => format(length),
    }
}

/// Serde functions for a duration that is written as text.
pub mod text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the duration as text.
    ///
    /// # Errors
    /// When the serializer refuses text.
    pub fn serialize<S: Serializer>(length: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format(*length))
    }

    /// Reads a duration from text.
    ///
    /// # Errors
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration")))
    }
}

/// Serde functions for an optional duration that is written as text.
pub mod optional {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::text")] Duration);

    /// Writes the duration as text, or nothing.
    ///
    /// # Errors
    /// When the serializer refuses text.
    pub fn serialize<S: Serializer>(length: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        length.map(Text).serialize(serializer)
    }

    /// Reads a duration from text, if there is one.
    ///
    /// # Errors
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_days_are_formatted_as_days() {
        let told = |secs| in_days(Duration::from_secs(secs));
        assert_eq!(
            (told(604_800), told(90_000), told(60)),
            ("7d".to_owned(), "25h".to_owned(), "1m".to_owned())
        );
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("2h 30m"), Some(Duration::from_secs(9000)));
        assert_eq!(parse("1d"), Some(Duration::from_secs(86_400)));
        for bad in ["", "30", "-1s", "soon", "1 fortnight"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for secs in [1, 60, 90, 3600, 86_400] {
            let length = Duration::from_secs(secs);
            assert_eq!(parse(&format(length)), Some(length));
            assert_eq!(parse(&in_days(length)), Some(length));
        }
    }
}
