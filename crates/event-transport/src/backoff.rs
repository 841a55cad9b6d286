//! The pauses between attempts of the library itself: doubled after each failure, bounded, and partly random.

use std::time::Duration;

/// The pauses after failures that follow one another. A constant of this type has the bounds of a loop: the loop takes
/// a copy of it, and after a success another one.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// Counts a failure and returns the pause that follows it.
    pub fn next_pause(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.tries.min(31));
        self.tries = self.tries.saturating_add(1);
        jitter(doubled.min(self.longest))
    }

    /// Counts a failure and waits.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// The number of failures so far.
    pub fn tries(&self) -> u32 {
        self.tries
    }
}

/// A random duration from half of `pause` to all of it, so that many clients do not act at the same moment.
pub fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(100), millis(1000));
        for (tries, bound) in [100, 200, 400, 800, 1000, 1000].into_iter().enumerate() {
            assert_eq!(backoff.tries() as usize, tries);
            let pause = backoff.next_pause();
            assert!(pause >= millis(bound / 2) && pause <= millis(bound), "{pause:?} of {bound} ms");
        }
        backoff.tries = u32::MAX;
        assert!(backoff.next_pause() <= millis(1000));
    }
}
