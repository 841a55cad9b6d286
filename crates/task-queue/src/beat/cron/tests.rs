//! Tests cron expressions against an oracle that shares no code with the implementation: it steps minute by minute
//! and uses only the wall clock.

use std::collections::{BTreeSet, HashSet};

use jiff::{
    SignedDuration, Timestamp, ToSpan,
    civil::{Date, DateTime, Weekday},
    tz::TimeZone,
};
use proptest::prelude::*;

use super::CronExpression;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The meaning of an expression, in another form.
struct Meaning {
    minutes: BTreeSet<i8>,
    hours: BTreeSet<i8>,
    days: fn(Date) -> bool,
    /// Whether it fires whenever the clock shows such a time, not once for each time of day.
    by_instant: bool,
}

impl Meaning {
    fn shows(&self, wall: DateTime) -> bool {
        self.minutes.contains(&wall.minute()) && self.hours.contains(&wall.hour()) && (self.days)(wall.date())
    }

    /// Returns every firing after the first entry of `clock`, found by stepping. `clock` has the wall time of every
    /// minute.
    fn firings(&self, clock: &[(Timestamp, DateTime)]) -> Vec<Timestamp> {
        let mut latest = clock[0].1;
        let mut found = Vec::new();
        for (now, wall) in &clock[1..] {
            let fires = if self.by_instant {
                self.shows(*wall)
            } else {
                // A time of day is due at the first instant at which the clock shows it or a later one.
                let passed = latest.series(1.minute()).skip(1).take_while(|passed| passed <= wall);
                let fires = { passed }.any(|passed| self.shows(passed));
                latest = latest.max(*wall);
                fires
            };
            if fires {
                found.push(*now);
            }
        }
        found
    }
}

fn any_day(_: Date) -> bool {
    true
}

/// Returns the wall time of every minute from three hours before a change to three hours after it.
fn clock_around(tz: &TimeZone, change: Timestamp) -> Vec<(Timestamp, DateTime)> {
    let start = change - SignedDuration::from_hours(3);
    (0..=360)
        .map(|minute| start + SignedDuration::from_mins(minute))
        .map(|now| (now, tz.to_datetime(now)))
        .collect()
}

/// Returns every clock change of every zone from 2020 to 2040; zones with equal changes are included once.
fn changes() -> Vec<(TimeZone, Timestamp)> {
    let (from, to) = (at("2020-01-01T00:00:00Z"), at("2041-01-01T00:00:00Z"));
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for name in jiff::tz::db().available() {
        let tz = TimeZone::get(name.as_str()).unwrap();
        let own: Vec<_> = tz
            .following(from)
            .map(|change| (change.timestamp(), change.offset()))
            .take_while(|(at, _)| *at < to)
            .collect();
        // A change of only the zone's abbreviation does not move the clock.
        let before = tz.to_offset(from);
        let moved =
            own.iter().scan(before, |offset, (at, to)| Some((*at, *to != std::mem::replace(offset, *to))));
        let moved: Vec<_> = moved.filter(|(_, moved)| *moved).map(|(at, _)| at).collect();
        if seen.insert((before, own)) {
            found.extend(moved.into_iter().map(|change| (tz.clone(), change)));
        }
    }
    assert!(found.len() > 1000, "only {} changes: is the time zone database there?", found.len());
    found
}

fn check(expression: &str, meaning: &Meaning, tz: &TimeZone, clock: &[(Timestamp, DateTime)]) {
    let cron = CronExpression::parse(expression).unwrap();
    let (start, end) = (clock[0].0, clock[clock.len() - 1].0);
    let fired = std::iter::successors(cron.next(start, tz), |at| cron.next(*at, tz));
    let fired: Vec<_> = fired.take_while(|at| *at <= end).collect();
    let zone = tz.iana_name().unwrap_or_default();
    assert_eq!(fired, meaning.firings(clock), "`{expression}` in {zone} after {start}");
}

#[test]
fn every_shape_goes_through_every_change_of_every_zone() {
    fn weekend(date: Date) -> bool {
        matches!(date.weekday(), Weekday::Friday | Weekday::Saturday | Weekday::Sunday | Weekday::Monday)
    }
    fn either(date: Date) -> bool {
        date.day() <= 15 || date.weekday() == Weekday::Sunday
    }
    fn both(date: Date) -> bool {
        date.day() % 2 == 1 && date.weekday() == Weekday::Sunday
    }
    let fixed = |minutes: &[i8], hours: &[i8], days| Meaning {
        minutes: minutes.iter().copied().collect(),
        hours: hours.iter().copied().collect(),
        days,
        by_instant: false,
    };
    let (all_hours, all_minutes): (Vec<i8>, Vec<i8>) = ((0..24).collect(), (0..60).collect());
    let even: Vec<i8> = (0..24).step_by(2).collect();
    let instant =
        |minutes: &[i8], hours: &[i8]| Meaning { by_instant: true, ..fixed(minutes, hours, any_day) };
    let shapes = [
        ("30 2 * * *", fixed(&[30], &[2], any_day)),
        ("0 0 * * *", fixed(&[0], &[0], any_day)),
        ("@midnight", fixed(&[0], &[0], any_day)),
        ("30 2,14 * * *", fixed(&[30], &[2, 14], any_day)),
        ("0,20,40 1-3 * * *", fixed(&[0, 20, 40], &[1, 2, 3], any_day)),
        ("0/20 22-2 * * *", fixed(&[0, 20, 40], &[22, 23, 0, 1, 2], any_day)),
        ("0-59 0-23 * * *", fixed(&all_minutes, &all_hours, any_day)),
        ("45 0-23/2 * * fri-mon", fixed(&[45], &even, weekend)),
        ("15 1,2,3 1-15 * sun", fixed(&[15], &[1, 2, 3], either)),
        ("15 1,2,3 */2 * 0,7", fixed(&[15], &[1, 2, 3], both)),
        ("15 1,2,3 1-31/2 jan-dec +sun", fixed(&[15], &[1, 2, 3], both)),
        ("* * * * *", instant(&all_minutes, &all_hours)),
        ("*/30 * * * *", instant(&[0, 30], &all_hours)),
        ("30 * * * *", instant(&[30], &all_hours)),
        ("10 */2 * * *", instant(&[10], &even)),
        ("*/15 2 * * *", instant(&[0, 15, 30, 45], &[2])),
    ];
    for (tz, change) in changes() {
        let clock = clock_around(&tz, change);
        for (expression, meaning) in &shapes {
            check(expression, meaning, &tz, &clock);
        }
    }
}

/// Writes `values` as a list of single values, with ranges if `ranges` is set.
fn written(values: &BTreeSet<i8>, ranges: bool) -> String {
    let mut items: Vec<(i8, i8)> = Vec::new();
    for value in values {
        match items.last_mut() {
            Some((_, to)) if ranges && *to + 1 == *value => *to = *value,
            _ => items.push((*value, *value)),
        }
    }
    let item = |(from, to): &(i8, i8)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    items.iter().map(item).collect::<Vec<_>>().join(",")
}

proptest! {
    #[test]
    fn any_list_of_minutes_and_hours_goes_through_a_change(
        minutes in prop::collection::btree_set(0i8..60, 1..8), hours in prop::collection::btree_set(0i8..24, 1..12),
        ranges in any::<bool>(), zone in prop::sample::select(vec!["Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Africa/Casablanca", "Antarctica/Troll"]),
        nth in 0usize..30,
    ) {
        let tz = TimeZone::get(zone).unwrap();
        let change = tz.following(at("2020-01-01T00:00:00Z")).nth(nth).unwrap().timestamp();
        let expression = format!("{} {} * * *", written(&minutes, ranges), written(&hours, ranges));
        let meaning = Meaning { minutes, hours, days: any_day, by_instant: false };
        check(&expression, &meaning, &tz, &clock_around(&tz, change));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[-0-9*/,?#+lLwW@a-zA-Z ]{0,40}") {
        if let Ok(cron) = CronExpression::parse(&text) {
            let tz = TimeZone::get("Europe/Berlin").unwrap();
            for after in [Timestamp::MIN, at("2027-03-28T00:59:59.5Z"), Timestamp::MAX] {
                prop_assert!(cron.next(after, &tz).is_none_or(|next| next > after));
            }
        }
    }
}

fn times(expression: &str, tz: &str, after: &str, count: usize) -> Vec<String> {
    let (cron, tz) = (CronExpression::parse(expression).unwrap(), TimeZone::get(tz).unwrap());
    let first = cron.next(at(after), &tz);
    std::iter::successors(first, |at| cron.next(*at, &tz)).take(count).map(|at| at.to_string()).collect()
}

#[test]
fn lists_and_ranges_fire_once_at_clock_changes() {
    // Berlin: 2027-03-28 02:00 becomes 03:00, 2027-10-31 03:00 becomes 02:00.
    assert_eq!(
        times("30 2,14 * * *", "Europe/Berlin", "2027-03-27T20:00:00Z", 3),
        ["2027-03-28T01:00:00Z", "2027-03-28T12:30:00Z", "2027-03-29T00:30:00Z"]
    );
    assert_eq!(
        times("30 2,14 * * *", "Europe/Berlin", "2027-10-30T20:00:00Z", 3),
        ["2027-10-31T00:30:00Z", "2027-10-31T13:30:00Z", "2027-11-01T01:30:00Z"]
    );
    // All times in the gap fall due at its end: one firing. The same with seconds.
    for expression in ["0-59 2 * * *", "* 0-59 2 * * *"] {
        assert_eq!(times(expression, "Europe/Berlin", "2027-03-27T20:00:00Z", 1), ["2027-03-28T01:00:00Z"]);
        assert_eq!(times(expression, "Europe/Berlin", "2027-03-28T01:00:00Z", 1), ["2027-03-29T00:00:00Z"]);
    }
}

#[test]
fn fields_are_read_as_people_mean_them() {
    for (expression, same) in [
        ("0 2 * * fri-mon", "0 2 * * 0,1,5,6"),
        ("0 2 * * Monday", "0 2 * * 1"),
        ("0 2 * * 5-7", "0 2 * * 0,5,6"),
        ("0 2 * * 7-2", "0 2 * * 0,1,2"),
        ("0 22-2 * * *", "0 0,1,2,22,23 * * *"),
        ("0 2 * nov-feb *", "0 2 * 1,2,11,12 *"),
        ("0/5 * * * *", "*/5 * * * *"),
        ("50-10/10 1 * * *", "0,10,50 1 * * *"),
        ("*,5 * * * *", "* * * * *"),
        ("0 2 ? * mon", "0 2 * * mon"),
        ("@midnight", "0 0 * * *"),
        ("0 2 * * friday#2", "0 2 * * 5#2"),
        ("0 2 * * 7L", "0 2 * * 0L"),
    ] {
        let from = "2026-11-21T00:00:00Z";
        assert_eq!(times(expression, "UTC", from, 40), times(same, "UTC", from, 40), "{expression}");
    }
    assert_eq!(times("0 2 L * *", "UTC", "2027-02-01T00:00:00Z", 1), ["2027-02-28T02:00:00Z"]);
    assert_eq!(times("0 2 15W * *", "UTC", "2027-05-01T00:00:00Z", 1), ["2027-05-14T02:00:00Z"]);
    assert_eq!(times("0 9 13 * +fri", "UTC", "2026-11-21T00:00:00Z", 1), ["2027-08-13T09:00:00Z"]);
}

#[test]
fn slips_are_refused_with_the_field() {
    for (expression, said) in [
        ("*/90 * * * *", "a step of 90 is beyond the 60 values"),
        ("0 */25 * * *", "hour"),
        ("*/0 * * * *", "is not a step"),
        ("1,, * * * *", "an item is missing"),
        (",1 * * * *", "an item is missing"),
        ("1- * * * *", "an item is missing"),
        ("60 * * * *", "`60` is not within 0 to 59"),
        ("0 0 0 * *", "day of month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "`8` is not within 0 to 7"),
        ("0 0 * * funday", "`funday` is not a value"),
        ("+1 * * * *", "minute"),
        ("0 0 l * l5", "day of week"),
        ("@reboot", "@midnight"),
        ("@", "@midnight"),
        ("0 0 30 2 *", "no date ever"),
    ] {
        let error = CronExpression::parse(expression).unwrap_err().to_string();
        assert!(error.contains(said), "{expression}: {error}");
    }
}
