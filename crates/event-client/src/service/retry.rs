//! Retry policy: the number of attempts, and the waits between them by exponential backoff with full jitter.

use std::time::Duration;

/// The number of attempts for a message, and the waits between them.
///
/// The wait before attempt *n + 1* is a random time between zero and `min(cap, base · 2^(n-1))`: "full jitter", which
/// spreads simultaneous retries best (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The number of attempts, including the first. Default 5.
    pub attempts: u32,
    /// The upper bound of the first wait. Default 1 s.
    pub base: Duration,
    /// The upper bound of every wait. Default 5 min.
    pub cap: Duration,
    /// Whether each wait is random below its bound; otherwise it is the bound itself. Default true.
    pub jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, base: Duration::from_secs(1), cap: Duration::from_secs(300), jitter: true }
    }
}

impl RetryPolicy {
    /// Creates a policy of `attempts` attempts in total, at least one.
    pub const fn attempts(attempts: u32) -> Self {
        Self { attempts, base: Duration::from_secs(1), cap: Duration::from_secs(300), jitter: true }
    }

    /// Creates a policy without retries: the first failure is final.
    pub const fn never() -> Self {
        Self::attempts(1)
    }

    /// Sets the upper bounds of the first wait and of every wait.
    #[must_use]
    pub const fn backoff(self, base: Duration, cap: Duration) -> Self {
        Self { base, cap, ..self }
    }

    /// Whether `attempt` (from 1) is the last one.
    pub fn is_last(&self, attempt: u32) -> bool {
        attempt >= self.attempts.max(1)
    }

    /// Returns the longest wait after failed attempt number `attempt`.
    pub fn bound(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// Returns the wait after failed attempt number `attempt`.
    pub fn wait(&self, attempt: u32) -> Duration {
        let bound = self.bound(attempt);
        if self.jitter { bound.mul_f64(fastrand::f64()) } else { bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_up_to_the_cap() {
        let policy = RetryPolicy { jitter: false, ..RetryPolicy::default() };
        let waits: Vec<_> = (1..=10).map(|n| policy.wait(n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(RetryPolicy::never().is_last(1) && !RetryPolicy::attempts(2).is_last(1));
    }

    proptest! {
        #[test]
        fn waits_stay_in_bounds_and_never_overflow(
            attempt in any::<u32>(), base in any::<u64>(), cap in any::<u64>(), jitter in any::<bool>()
        ) {
            let policy = RetryPolicy {
                attempts: 5, base: Duration::from_millis(base), cap: Duration::from_millis(cap), jitter,
            };
            prop_assert!(policy.wait(attempt) <= policy.cap);
            prop_assert!(policy.bound(attempt) <= policy.bound(attempt.saturating_add(1)));
        }
    }
}
