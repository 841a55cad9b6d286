//! Computes the next step of a schedule, including nominal times at which no scheduler was running.

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::Timing;
use crate::{Error, Result};

/// A nominal time that is older than this counts as missed.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// The maximum number of missed times that [`Missed::All`] fires in one step; the rest follow in the next.
const MOST: usize = 1000;

/// The policy for missed times, at which no scheduler was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// Fire once for all of them, with the latest nominal time.
    #[default]
    Once,
    /// Do not fire for times more than a minute ago.
    Skip,
    /// Fire once for each.
    All,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once => "once",
            Self::Skip => "skip",
            Self::All => "all",
        })
    }
}

impl FromStr for Missed {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "once" => Ok(Self::Once),
            "skip" => Ok(Self::Skip),
            "all" => Ok(Self::All),
            _ => Err(Error::invalid(format!(
                "`{text}` is not a policy for missed times: write once, skip or all"
            ))),
        }
    }
}

/// When the clock is set back by more than this, it counts as corrected, and all schedules follow the new time at
/// once.
const CORRECTED: SignedDuration = SignedDuration::from_hours(3);
/// A schedule that fires at least this often continues at once when the clock is set back.
const FREQUENT: SignedDuration = SignedDuration::from_hours(1);

/// Returns a new next nominal time when the clock was set back behind a time that has fired, and the stored next
/// time would be too late: an interval continues by elapsed time, and so does a calendar that fires every hour or
/// more often. A schedule that fires less often does not fire again in hours that occur twice, unless the clock was
/// corrected by more than three hours. (cron does the same.)
pub(super) fn set_back(
    timing: &Timing,
    tz: &TimeZone,
    start: Timestamp,
    (last, next): (Timestamp, Timestamp),
    now: Timestamp,
) -> Option<Timestamp> {
    let back = last.duration_since(now);
    if back <= LATE {
        return None;
    }
    let frequent = matches!(timing, Timing::Every(_)) || next.duration_since(last) <= FREQUENT;
    if !frequent && back <= CORRECTED {
        return None;
    }
    // The grid of an interval keeps its anchor, so that several schedulers compute the same times, also for a time
    // before its start.
    let anchor = if now < start && matches!(timing, Timing::Every(_)) { now } else { start };
    timing.next(now, tz, anchor).filter(|again| *again < next)
}

/// One step of a schedule.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// The nominal times to fire, oldest first.
    pub(super) fire: Vec<Timestamp>,
    /// The next nominal time after them.
    pub(super) next: Option<Timestamp>,
}

/// Computes the step of a schedule that was due at `due`.
pub(super) fn step(
    timing: &Timing,
    tz: &TimeZone,
    start: Timestamp,
    missed: Missed,
    due: Timestamp,
    now: Timestamp,
) -> Step {
    let following = |at| timing.next(at, tz, start);
    if missed == Missed::All {
        let mut fire = vec![due];
        let mut next = following(due);
        while let Some(at) = next.filter(|at| *at <= now && fire.len() < MOST) {
            fire.push(at);
            next = following(at);
        }
        return Step { fire, next };
    }
    // Computed from now instead of time by time: after a year's pause an interval of a second has 31 million missed
    // times.
    let next = following(now);
    let latest = latest(timing, tz, start, due, now);
    let fire =
        if missed == Missed::Skip && now.duration_since(latest) > LATE { Vec::new() } else { vec![latest] };
    Step { fire, next }
}

/// Returns the last nominal time from `due` to `now`.
fn latest(timing: &Timing, tz: &TimeZone, start: Timestamp, due: Timestamp, now: Timestamp) -> Timestamp {
    // Searches back twice as far each time, until a nominal time lies between that point and now.
    let mut back = SignedDuration::from_secs(1);
    let mut latest = due;
    while now.duration_since(due) > back {
        let from = now - back;
        match timing.next(from, tz, start).filter(|at| *at <= now) {
            Some(found) => {
                latest = found;
                break;
            }
            None => back = back.saturating_add(back),
        }
    }
    while let Some(at) = timing.next(latest, tz, start).filter(|at| *at <= now) {
        latest = at;
    }
    latest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn run(timing: &str, missed: Missed, due: &str, now: &str) -> Step {
        let timing: Timing = timing.parse().unwrap();
        step(&timing, &TimeZone::UTC, at(due), missed, at(due), at(now))
    }

    #[test]
    fn on_time_all_policies_agree() {
        for missed in [Missed::Once, Missed::Skip, Missed::All] {
            let step = run("every 1m", missed, "2026-11-21T00:00:00Z", "2026-11-21T00:00:00.002Z");
            assert_eq!(step.fire, [at("2026-11-21T00:00:00Z")]);
            assert_eq!(step.next, Some(at("2026-11-21T00:01:00Z")));
        }
    }

    #[test]
    fn after_a_pause_once_fires_the_latest_skip_none_and_all_each() {
        let (due, now) = ("2026-11-21T00:00:00Z", "2026-11-21T03:20:00Z");
        let hours: Vec<_> = (0..4).map(|hour| at(&format!("2026-11-21T0{hour}:00:00Z"))).collect();
        let next = Some(at("2026-11-21T04:00:00Z"));
        assert_eq!(run("cron 0 * * * *", Missed::Once, due, now), Step { fire: vec![hours[3]], next });
        assert_eq!(run("cron 0 * * * *", Missed::Skip, due, now), Step { fire: vec![], next });
        assert_eq!(run("cron 0 * * * *", Missed::All, due, now), Step { fire: hours, next });
    }

    #[test]
    fn a_clock_set_back_lets_frequent_schedules_go_on_and_rare_ones_wait() {
        let midnight = "2026-11-21T00:00:00Z";
        for (timing, start, last, next, now, again) in [
            ("every 30s", midnight, "12:00:00", "12:00:30", "11:00:05", Some("11:00:30")),
            ("every 2h", midnight, "12:00:00", "14:00:00", "11:00:05", Some("12:00:00")),
            ("cron * * * * *", midnight, "12:00:00", "12:01:00", "11:00:05", Some("11:01:00")),
            ("cron 0 * * * *", midnight, "12:00:00", "13:00:00", "11:30:00", Some("12:00:00")),
            // Less than a minute hardly counts as a change of the clock, and passes soon.
            ("every 30s", midnight, "12:00:00", "12:00:30", "11:59:20", None),
            // The new time was computed already.
            ("every 30s", midnight, "12:00:00", "11:00:30", "11:00:05", None),
            // A schedule that fires twice a day does not fire three times because an hour occurred twice.
            ("cron 0 0,12 * * *", midnight, "12:00:00", "23:59:59", "11:30:00", None),
            ("cron 0 0,12 * * *", midnight, "12:00:00", "23:59:59", "08:00:00", Some("12:00:00")),
            // The schedule was declared and fired while the clock was wrong.
            ("every 10s", "2026-11-21T12:00:00Z", "12:00:10", "12:00:20", "11:00:00", Some("11:00:10")),
        ] {
            let on = |time: &str| at(&format!("2026-11-21T{time}Z"));
            let timing: Timing = timing.parse().unwrap();
            let found = set_back(&timing, &TimeZone::UTC, at(start), (on(last), on(next)), on(now));
            assert_eq!(found, again.map(on), "{timing} {now}");
        }
    }

    #[test]
    fn skip_still_fires_what_is_hardly_late() {
        let step = run("every 10s", Missed::Skip, "2026-11-21T00:00:00Z", "2026-11-21T00:00:35Z");
        assert_eq!(step.fire, [at("2026-11-21T00:00:30Z")]);
    }

    #[test]
    fn a_year_of_missed_seconds_is_one_step() {
        let step = run("every 1s", Missed::Once, "2025-11-21T00:00:00Z", "2026-11-21T00:00:00.5Z");
        assert_eq!(step.fire, [at("2026-11-21T00:00:00Z")]);
        let all = run("every 1s", Missed::All, "2025-11-21T00:00:00Z", "2026-11-21T00:00:00.5Z");
        assert_eq!(all.fire.len(), MOST);
        assert_eq!(all.next, Some(at("2025-11-21T00:16:40Z")));
    }
}
