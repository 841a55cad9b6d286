//! Waits for a condition: polls it, and names it when the deadline passes.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The interval between two polls: short compared with any deadline, long compared with a poll.
const REST: Duration = Duration::from_millis(10);

/// Waits until `condition` returns true; `what` completes the sentence "waited for …".
///
/// The deadline is a bound for failing runs, not a measurement: choose a generous one (tens of seconds),
/// because a passing test never waits for it. The condition is checked once more after the deadline.
///
/// # Panics
/// When the condition is still false at the deadline.
pub async fn eventually<F, Fut>(deadline: Duration, what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + deadline;
    loop {
        let last_look = Instant::now() >= end;
        if condition().await {
            return;
        }
        assert!(!last_look, "waited {deadline:?} for {what}, in vain");
        sleep(REST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looks_again_until_it_is_true() {
        let mut looks = 0;
        eventually(Duration::from_secs(30), "the third look", || {
            looks += 1;
            let seen = looks >= 3;
            async move { seen }
        })
        .await;
        assert_eq!(looks, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "for a condition that is never true, in vain")]
    async fn says_what_it_waited_for() {
        eventually(Duration::from_millis(1), "a condition that is never true", || async { false }).await;
    }
}
