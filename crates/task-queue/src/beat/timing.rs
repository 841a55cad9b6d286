//! Computes the times of a schedule: a cron expression in a time zone, or an interval from its start.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use settings::duration;

use super::CronExpression;
use crate::{Error, Result, bounds::LONGEST};

/// The timing of a schedule. Stores keep its text: `cron 0 2 * * mon-fri` or `every 30s`.
///
/// A cron expression has the meaning of crontab(5). It has five fields (minute, hour, day of month, month, day of
/// week) or six with seconds first, or is a shorthand such as `@daily` or `@midnight`:
///
/// - Values, names (`mon`, `Monday`, `jan`), lists, ranges and steps. A range may wrap around the end of its field
///   (`fri-mon`, `22-2`); `5/15` begins at 5. Sunday is 0 or 7. A step larger than the field (`*/90` in minutes) is
///   refused.
/// - `L` is the last day of the month, `15W` the weekday nearest to the 15th, `5#2` the second Friday, `5L` the last.
/// - **Day of month and day of week:** when both are restricted, a day matches when either field matches. When one
///   of them begins with a star (`*/2`), both must match. Celery always requires both: write a `+` before the day
///   of week for that (`0 9 13 * +fri` fires on Friday the 13th).
/// - **Clock changes:** a time of day that a clock change skips fires at the end of the gap, and only once when
///   several of its times are in the gap. A time of day that occurs twice fires at its first occurrence. An
///   expression whose minutes or hours begin with a star fires at every instant whose wall clock matches, like an
///   interval.
#[derive(Debug, Clone)]
pub enum Timing {
    /// Times of the calendar.
    Cron(Box<CronExpression>),
    /// The start and every interval after it; at least 100 ms, at most a hundred years.
    Every(Duration),
}

impl Timing {
    /// Parses a cron expression with five or six fields.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), naming the wrong field, or when no date ever matches.
    pub fn cron(expression: &str) -> Result<Self> {
        Ok(Self::Cron(Box::new(CronExpression::parse(expression)?)))
    }

    /// Creates an interval.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) below 100 ms, which no scheduler can keep, and above a
    /// hundred years.
    pub fn every(interval: Duration) -> Result<Self> {
        if interval > LONGEST {
            return Err(Error::invalid("an interval is a hundred years at most"));
        }
        if interval < Duration::from_millis(100) {
            return Err(Error::invalid(format!(
                "an interval of {interval:?} is too short: it must be at least 100ms"
            )));
        }
        Ok(Self::Every(interval))
    }

    /// Returns the first nominal time after `after`; `start` anchors an interval. `None` when there is no further
    /// time.
    pub fn next(&self, after: Timestamp, tz: &TimeZone, start: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(expression) => expression.next(after, tz),
            Self::Every(interval) => {
                if after < start {
                    return Some(start);
                }
                let step = interval.as_nanos();
                let since = after.duration_since(start).as_nanos().unsigned_abs();
                let elapsed = (since / step + 1).checked_mul(step)?;
                let elapsed = SignedDuration::from_nanos_i128(i128::try_from(elapsed).ok()?);
                start.checked_add(elapsed).ok()
            }
        }
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cron(expression) => write!(f, "cron {}", expression.text()),
            Self::Every(interval) => write!(f, "every {}", duration::format(*interval)),
        }
    }
}

impl FromStr for Timing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim().split_once(' ') {
            Some(("cron", expression)) => Self::cron(expression),
            Some(("every", interval)) => match duration::parse(interval) {
                Some(interval) => Self::every(interval),
                None => {
                    Err(Error::invalid(format!("`{interval}` is not a duration such as `30s` or `2h 30m`")))
                }
            },
            _ => Err(Error::invalid(format!(
                "`{text}` is not a timing: write `cron 0 2 * * *` or `every 30s`"
            ))),
        }
    }
}

/// Looks up a time zone by its IANA name.
pub(crate) fn zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|error| {
        Error::invalid(format!("`{name}` is not a time zone such as `Europe/Berlin`")).because(error)
    })
}

#[cfg(test)]
mod tests {
    use jiff::{ToSpan, civil::DateTime, tz::AmbiguousOffset};
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn times(timing: &str, tz: &str, after: &str, count: usize) -> Vec<String> {
        let (timing, tz) = (timing.parse::<Timing>().unwrap(), zone(tz).unwrap());
        let mut at = at(after);
        let mut found = Vec::new();
        for _ in 0..count {
            at = timing.next(at, &tz, Timestamp::UNIX_EPOCH).unwrap();
            found.push(at.to_string());
        }
        found
    }

    #[test]
    fn reads_five_and_six_fields_and_names() {
        assert_eq!(times("cron 30 2 * * mon", "UTC", "2026-11-21T00:00:00Z", 1), ["2026-11-23T02:30:00Z"]);
        assert_eq!(
            times("cron */20 * * * * *", "UTC", "2026-11-21T00:00:05.5Z", 3),
            ["2026-11-21T00:00:20Z", "2026-11-21T00:00:40Z", "2026-11-21T00:01:00Z"]
        );
        assert_eq!(times("cron @daily", "UTC", "2026-11-21T00:00:00Z", 1), ["2026-11-22T00:00:00Z"]);
        assert_eq!(times("cron 0 0 29 feb *", "UTC", "2026-11-21T00:00:00Z", 1), ["2028-02-29T00:00:00Z"]);
    }

    #[test]
    fn bad_expressions_say_why() {
        for (text, said) in [
            ("* * * *", "it has 4"),
            ("* * * * * * *", "it has 7"),
            ("", "it has 0"),
            ("61 * * * *", "61 * * * *"),
            ("0 0 30 2 *", "no date ever"),
            ("0 0 * * funday", "funday"),
        ] {
            let error = Timing::cron(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(said), "{error}");
        }
        for text in ["every 1ms", "every soon", "daily", "every -3s"] {
            assert_eq!(text.parse::<Timing>().unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        assert!(zone("Mars/Olympus").unwrap_err().to_string().contains("Europe/Berlin"));
    }

    #[test]
    fn a_fixed_time_in_the_gap_fires_at_its_end_and_in_the_fold_once() {
        // Berlin: 2027-03-28 02:00 becomes 03:00, 2027-10-31 03:00 becomes 02:00.
        assert_eq!(
            times("cron 30 2 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2),
            ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]
        );
        assert_eq!(
            times("cron 30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2),
            ["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"]
        );
        // A half-hourly expression continues through both occurrences.
        assert_eq!(
            times("cron */30 * * * *", "Europe/Berlin", "2027-10-31T00:00:00Z", 4),
            ["2027-10-31T00:30:00Z", "2027-10-31T01:00:00Z", "2027-10-31T01:30:00Z", "2027-10-31T02:00:00Z"]
        );
    }

    const ZONES: &[&str] = &[
        "Europe/Berlin",
        "America/New_York",
        "America/St_Johns",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "Asia/Kathmandu",
        "America/Havana",
        "Pacific/Apia",
        "Antarctica/Troll",
        "UTC",
    ];

    /// Returns an instant at `offset` seconds from one of the zone's changes, if it has any.
    fn near_change(zone: &str, nth: usize, offset: i64) -> Timestamp {
        let tz = TimeZone::get(zone).unwrap();
        let change = tz
            .following(at("2020-01-01T00:00:00Z"))
            .nth(nth)
            .map_or(at("2026-03-29T01:00:00Z"), |t| t.timestamp());
        change + SignedDuration::from_secs(offset)
    }

    /// Returns the due time of a fixed wall time: its first occurrence, or the end of the gap that contains it.
    fn due_on(tz: &TimeZone, wall: DateTime) -> Timestamp {
        let ambiguous = tz.to_ambiguous_timestamp(wall);
        match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => {
                let inside = ambiguous.later().unwrap();
                tz.preceding(inside + SignedDuration::from_secs(1)).next().unwrap().timestamp()
            }
            _ => ambiguous.earlier().unwrap(),
        }
    }

    proptest! {
        #[test]
        fn wildcard_minutes_fire_at_every_instant_whose_clock_matches(
            zone in prop::sample::select(ZONES), nth in 0usize..12, offset in -7200i64..7200, step in prop::sample::select(vec![1i64, 5, 7, 15, 30]),
        ) {
            let tz = TimeZone::get(zone).unwrap();
            let timing = Timing::cron(&format!("*/{step} * * * *")).unwrap();
            let mut after = near_change(zone, nth, offset);
            for _ in 0..20 {
                let next = timing.next(after, &tz, after).unwrap();
                // The next whole minute whose wall clock minute matches, found by stepping.
                let mut slow = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).unwrap();
                while i64::from(slow.to_zoned(tz.clone()).minute()) % step != 0 {
                    slow += SignedDuration::from_secs(60);
                }
                prop_assert_eq!(next, slow, "{} after {}", zone, after);
                after = next;
            }
        }

        #[test]
        fn a_fixed_time_fires_once_on_each_day_it_exists(
            zone in prop::sample::select(ZONES), nth in 0usize..12, hour in 0i8..24, minute in 0i8..60,
        ) {
            let tz = TimeZone::get(zone).unwrap();
            let timing = Timing::cron(&format!("{minute} {hour} * * *")).unwrap();
            let start = near_change(zone, nth, -3 * 86_400);
            let end = start + SignedDuration::from_hours(6 * 24);
            let fired: Vec<_> = std::iter::successors(timing.next(start, &tz, start), |at| timing.next(*at, &tz, start))
                .take_while(|at| *at < end)
                .collect();
            let first = start.to_zoned(tz.clone()).date();
            let mut expected: Vec<_> = first.series(1.day()).take(8).map(|date| due_on(&tz, date.at(hour, minute, 0, 0))).collect();
            expected.retain(|at| *at > start && *at < end);
            prop_assert_eq!(fired, expected, "{}", zone);
        }

        #[test]
        fn intervals_keep_their_grid(start in 0i64..4_000_000_000_000, after in 0i64..4_000_000_000_000, every in 100u64..10_000_000) {
            let timing = Timing::every(Duration::from_millis(every)).unwrap();
            let (start, after) = (Timestamp::from_millisecond(start).unwrap(), Timestamp::from_millisecond(after).unwrap());
            let next = timing.next(after, &TimeZone::UTC, start).unwrap();
            let offset = next.duration_since(start).as_millis();
            prop_assert!(next >= start && offset % i128::from(every) == 0);
            prop_assert!(next > after || next == start);
            prop_assert!(next == start || next.duration_since(after).as_millis() <= i128::from(every));
            prop_assert_eq!(timing.to_string().parse::<Timing>().unwrap().to_string(), timing.to_string());
        }
    }
}
