//! Durations as one says them: `800.millis()`, `5.mins()`.

use std::time::Duration;

/// Numbers that become durations. Negative numbers are no time at all.
///
/// ```
/// use std::time::Duration;
/// use event_client::Units;
/// assert_eq!(800.millis(), Duration::from_millis(800));
/// assert_eq!(5.mins(), Duration::from_secs(300));
/// assert_eq!((-1).secs(), Duration::ZERO);
/// ```
pub trait Units: Copy {
    /// The number itself, if it is not negative.
    #[doc(hidden)]
    fn number(self) -> u64;

    /// So many milliseconds.
    fn millis(self) -> Duration {
        Duration::from_millis(self.number())
    }

    /// So many seconds.
    fn secs(self) -> Duration {
        Duration::from_secs(self.number())
    }

    /// So many minutes.
    fn mins(self) -> Duration {
        Duration::from_secs(self.number().saturating_mul(60))
    }

    /// So many hours.
    fn hours(self) -> Duration {
        Duration::from_secs(self.number().saturating_mul(3600))
    }
}

impl Units for i32 {
    fn number(self) -> u64 {
        self.max(0) as u64
    }
}

impl Units for u32 {
    fn number(self) -> u64 {
        self.into()
    }
}

impl Units for u64 {
    fn number(self) -> u64 {
        self
    }
}
