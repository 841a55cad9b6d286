//! Limits for durations and times from the caller, so that every clock, store and broker can represent them.
//!
//! All arithmetic with a caller's duration goes through this module, so that no sum can overflow: the panic would end a
//! task that serves other callers too.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The longest duration that the library uses: 100 years of 365 days. A longer duration is replaced by this one.
///
/// Added to the present time it fits every clock: nanoseconds since 1970 in a signed 64-bit number, which SQLite's rows
/// and NATS store, and milliseconds in a double, which Redis' sorted sets store.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Returns `duration`, but at most [`LONGEST`].
#[inline]
pub fn bounded(duration: Duration) -> Duration {
    duration.min(LONGEST)
}

/// The time `duration` after `start`.
#[inline]
pub fn later(start: Instant, duration: Duration) -> Instant {
    start + bounded(duration)
}

/// The time `duration` from now.
#[inline]
pub fn from_now(duration: Duration) -> Instant {
    later(Instant::now(), duration)
}

/// The time `duration` from now by the wall clock.
pub fn time_from_now(duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(bounded(duration)).unwrap_or(SignedDuration::MAX);
    // The wall clock may be set so late that even a bounded duration passes the end of jiff's calendar.
    Timestamp::now().checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The duration from now until `time`, at most [`LONGEST`]; zero when `time` has passed.
pub fn left_until(time: Timestamp) -> Duration {
    bounded(Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default())
}

/// Whole milliseconds, rounded up, so that a wait never ends early.
#[inline]
pub fn millis(duration: Duration) -> u64 {
    let duration = bounded(duration);
    duration.as_secs() * 1000 + u64::from(duration.subsec_nanos().div_ceil(1_000_000))
}

/// Whole milliseconds, rounded up, for stores and brokers with signed numbers.
#[inline]
pub fn signed_millis(duration: Duration) -> i64 {
    millis(duration).cast_signed()
}

/// `duration` in whole milliseconds, rounded up.
#[inline]
pub fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(millis(duration))
}

/// Nanoseconds, for stores and brokers with signed numbers.
#[inline]
pub fn signed_nanos(duration: Duration) -> i64 {
    let duration = bounded(duration);
    duration.as_secs().cast_signed() * 1_000_000_000 + i64::from(duration.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_duration_overflows_and_none_becomes_shorter_than_asked() {
        for duration in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_millis(i64::MAX as u64),
            Duration::from_secs(u64::MAX),
            Duration::MAX,
        ] {
            let kept = bounded(duration);
            assert!(u128::from(millis(duration)) >= kept.as_millis(), "{duration:?}");
            assert_eq!(u128::from(signed_millis(duration).unsigned_abs()), u128::from(millis(duration)));
            assert_eq!(u128::from(signed_nanos(duration).unsigned_abs()), kept.as_nanos());
            let before = Instant::now();
            assert!(from_now(duration) >= before + kept);
            assert!(time_from_now(duration) <= Timestamp::MAX);
            assert!(later(from_now(duration), Duration::MAX) > Instant::now());
        }
        assert_eq!((millis(Duration::ZERO), millis(Duration::from_nanos(1))), (0, 1));
    }

    #[test]
    fn both_ends_of_the_calendar_are_in_reach() {
        assert_eq!(left_until(Timestamp::MIN), Duration::ZERO);
        assert_eq!(left_until(Timestamp::MAX), LONGEST);
        assert!(
            Timestamp::now().as_nanosecond() + i128::from(signed_nanos(Duration::MAX)) < i128::from(i64::MAX)
        );
    }
}
