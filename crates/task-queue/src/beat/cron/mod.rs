//! Parses cron expressions with the meaning of crontab(5), and computes their times across the clock changes of a
//! time zone.
//!
//! croner computes the calendar (the days and times of day that match), without a time zone. This module decides
//! two things: the parsing of a field, so that a mistake is refused instead of having another meaning, and the
//! effect of a clock change on a time.

mod field;
#[cfg(test)]
mod tests;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

use crate::{Error, ErrorKind, Result};
use field::FIELDS;

/// A checked cron expression.
#[derive(Debug, Clone)]
pub struct CronExpression {
    /// The text as written, with single spaces.
    text: String,
    calendar: Cron,
    /// Whether minutes or hours begin with a star: then the expression fires at every instant whose wall clock
    /// matches.
    by_instant: bool,
}

/// The shorthands of crontab(5) except `@reboot`, which is not a time.
const SHORTHANDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

impl CronExpression {
    /// Parses an expression.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the wrong field, or when no date ever matches.
    pub(crate) fn parse(expression: &str) -> Result<Self> {
        let text = expression.split_whitespace().collect::<Vec<_>>().join(" ");
        let bad = |why: String| {
            Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is not a cron expression of 5 fields, or 6 with seconds first: {why}"),
            )
        };
        let lower = text.to_ascii_lowercase();
        let fields = match SHORTHANDS.iter().find(|(name, _)| *name == lower) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => {
                let known = SHORTHANDS.map(|(name, _)| name).join(", ");
                return Err(bad(format!("the shorthands are {known}")));
            }
            None => lower.as_str(),
        };
        let given: Vec<&str> = fields.split(' ').collect();
        if !(5..=6).contains(&given.len()) || text.is_empty() {
            let count = if text.is_empty() { 0 } else { given.len() };
            return Err(bad(format!("it has {count} fields")));
        }
        let kinds = &FIELDS[FIELDS.len() - given.len()..];
        let mut read = kinds
            .iter()
            .zip(&given)
            .map(|(kind, text)| kind.read(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(&bad)?;
        let star = |name: &str| {
            kinds.iter().zip(&given).any(|(kind, text)| kind.name == name && text.starts_with('*'))
        };
        // crontab(5): a day matches when either day field matches, unless one of them begins with a star; then both
        // must match.
        let days = read.last_mut().expect("there are at least five");
        if (star("day of month") || star("day of week")) && !days.starts_with('+') && days != "*" {
            days.insert(0, '+');
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let calendar = parser.parse(&read.join(" ")).map_err(|error| bad(error.to_string()))?;
        let by_instant = star("minute") || star("hour");
        let parsed = Self { text: text.clone(), calendar, by_instant };
        if parsed.matching(DateTime::new(2000, 1, 1, 0, 0, 0, 0).expect("a date"), true).is_none() {
            return Err(bad("no date ever matches it".to_owned()));
        }
        Ok(parsed)
    }

    /// The text as written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the first time after `after` in a zone; `None` when the calendar ends first.
    pub(crate) fn next(&self, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
        if self.by_instant { self.next_instant(after, tz) } else { self.next_fixed(after, tz) }
    }

    /// Returns the first instant whose wall clock matches. Between two clock changes the wall clock runs evenly, so
    /// each period is searched with its own offset.
    fn next_instant(&self, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let offset = tz.to_offset(from);
            let end = tz.following(from).next().map(|change| change.timestamp());
            let found = offset.to_timestamp(self.matching(offset.to_datetime(from), inclusive)?).ok()?;
            match end {
                // No match in this period; the next one begins at the change itself.
                Some(end) if found >= end => (from, inclusive) = (end, true),
                _ => return Some(found),
            }
        }
    }

    /// Returns the first due time of a matching wall time: its first occurrence, or the end of the gap that
    /// contains it.
    fn next_fixed(&self, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
        // Due times have the same order as wall times, so the first one that is later than `after` is the next.
        let mut wall = tz.to_datetime(after);
        let mut inclusive = true;
        loop {
            wall = self.matching(wall, inclusive)?;
            inclusive = false;
            let due = due(wall, tz)?;
            if due > after {
                return Some(due);
            }
        }
    }

    /// Returns the first matching wall time after `from`, or at it if `inclusive`.
    fn matching(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        // Matching times are whole seconds, so a `from` with a fraction is after the beginning of its second.
        let inclusive = inclusive && from.subsec_nanosecond() == 0;
        let from = from.with().subsec_nanosecond(0).build().ok()?;
        self.calendar.find_next_occurrence(&from, inclusive).ok()
    }
}

/// Returns the due time of a fixed wall time in a zone.
fn due(wall: DateTime, tz: &TimeZone) -> Option<Timestamp> {
    let ambiguous = tz.to_ambiguous_timestamp(wall);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => {
            // The later interpretation is after the change that caused the gap.
            let behind = ambiguous.later().ok()?.checked_add(SignedDuration::from_secs(1)).ok()?;
            tz.preceding(behind).next().map(|change| change.timestamp())
        }
        _ => ambiguous.earlier().ok(),
    }
}
