//! Lengths of time as people write them: `30s`, `1500ms`, `2h 30m`, through jiff's friendly format.

use std::time::Duration;

use jiff::{SignedDuration, Span};

/// Reads `30s`, `5 minutes`, `PT1M`; days are 24 hours. `None` for anything else or for a negative time.
pub(crate) fn parse(text: &str) -> Option<Duration> {
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

/// The shortest text that [`parse`] reads back.
pub(crate) fn format(length: Duration) -> String {
    match SignedDuration::try_from(length) {
        Ok(length) => format!("{length:#}"),
        Err(_) => format!("{}s", length.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }
}
