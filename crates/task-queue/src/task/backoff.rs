//! Computes the delay before a retry: exponential growth to a cap, full jitter below it.

use std::time::Duration;

/// Exponential backoff with full jitter: the delay before retry `n` is uniform in `0 ..= min(max, base * 2^(n-1))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The upper limit of the first delay.
    pub base: Duration,
    /// The upper limit of every delay.
    pub max: Duration,
}

impl Backoff {
    /// 1 s doubling to 10 min.
    pub const DEFAULT: Self = Self { base: Duration::from_secs(1), max: Duration::from_secs(600) };

    /// The longest delay before the `retry`-th retry; the first is number 1.
    pub fn ceiling(&self, retry: u32) -> Duration {
        let factor = 1u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// A random delay below the ceiling, so that tasks that failed together do not run again together.
    pub fn delay(&self, retry: u32) -> Duration {
        let ceiling = u64::try_from(self.ceiling(retry).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(fastrand::u64(0..=ceiling))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_below_a_ceiling_that_doubles_to_the_cap(base in 0u64..100_000, max in 0u64..10_000_000, retry in 1u32..200) {
            let backoff = Backoff { base: Duration::from_millis(base), max: Duration::from_millis(max) };
            let ceiling = backoff.ceiling(retry);
            prop_assert!(ceiling <= backoff.max);
            prop_assert!(backoff.delay(retry) <= ceiling);
            prop_assert!(ceiling <= backoff.ceiling(retry + 1));
            if retry < 20 {
                prop_assert_eq!(ceiling, Duration::from_millis((base << (retry - 1)).min(max)));
            }
        }
    }

    #[test]
    fn jitter_is_full() {
        let backoff = Backoff { base: Duration::from_secs(10), max: Duration::from_secs(10) };
        let draws: Vec<_> = (0..1000).map(|_| backoff.delay(1)).collect();
        assert!(draws.iter().any(|draw| *draw < Duration::from_secs(2)));
        assert!(draws.iter().any(|draw| *draw > Duration::from_secs(8)));
    }
}
