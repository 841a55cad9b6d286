//! Defines the limits of values that users give, so that no later sum of them overflows.

use std::time::Duration;

use settings::duration;

use crate::{Error, Result};

/// The longest duration that is stored or waited for. Longer times to live are reduced to it.
pub(crate) use settings::duration::LONGEST;
/// The largest number of tasks that one worker runs at once.
pub(crate) const SLOTS: usize = 65_536;
/// The longest name of a task kind or a queue, and the longest unique key, in bytes.
pub(crate) const NAME: usize = 1024;

/// A time to live in whole milliseconds, at most [`LONGEST`].
pub(crate) fn ttl_ms(ttl: Duration) -> i64 {
    ttl.min(LONGEST).as_millis() as i64
}

/// Refuses a duration outside its limits.
pub(crate) fn within(what: &str, length: Duration, least: Duration, most: Duration) -> Result<Duration> {
    if (least..=most).contains(&length) {
        return Ok(length);
    }
    Err(Error::invalid(format!(
        "{what} of {} is not between {} and {}",
        duration::format(length),
        duration::format(least),
        duration::format(most)
    )))
}
