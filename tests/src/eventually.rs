//! Waiting for a condition: look, look again, and say what was awaited when the deadline passes.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long to rest between two looks: short beside any deadline, long beside a look.
const REST: Duration = Duration::from_millis(10);

/// Waits until `condition` answers true; `what` completes the sentence "waited for …".
///
/// The deadline is a bound for broken runs, not a measure: choose it generously (tens of seconds), a passing
/// test never waits for it. The condition is looked at once more after the deadline.
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
    #[should_panic(expected = "for what never comes, in vain")]
    async fn says_what_it_waited_for() {
        eventually(Duration::from_millis(1), "what never comes", || async { false }).await;
    }
}
