//! Rate limit: so many calls in a time, the rest wait their turn.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;

use super::admission::{Admission, AdmissionService, Decision, Permit, wait_for};
use super::operation::{Classify, Operation};
use crate::bounds;
use crate::error::{Error, ErrorKind};

/// Lets calls through at an even rate, with bursts of a size that can be set. Whatever this value and its clones
/// are put around shares one rate.
///
/// A call beyond the rate waits for its turn. A request whose deadline would pass before its turn is refused at
/// once (`RESOURCE_EXHAUSTED`); an event has no such deadline, so a handler is slowed, never failed.
///
/// The generic cell rate algorithm on tokio's clock: one time stamp is all the state.
#[derive(Clone)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
    /// When the next call would be due if calls came evenly.
    due: Arc<Mutex<Option<Instant>>>,
}

impl RateLimit {
    /// `calls` in every `period` of at most [`LONGEST`](crate::LONGEST), as many of them at once; at least one.
    pub fn new(calls: u32, period: Duration) -> Self {
        let calls = calls.max(1);
        Self { interval: bounds::bounded(period) / calls, burst: calls, due: Arc::default() }
    }

    /// `calls` in every second.
    pub fn per_second(calls: u32) -> Self {
        Self::new(calls, Duration::from_secs(1))
    }

    /// At most `calls` at once, at least one; default as many as in one period.
    #[must_use]
    pub fn burst(self, calls: u32) -> Self {
        Self { burst: calls.max(1), ..self }
    }

    /// Books the next turn and says how long it is to wait; `None` when the turn would come after `deadline`.
    fn book(&self, now: Instant, deadline: Option<Instant>) -> Option<Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.unwrap_or(now).max(now);
        let ahead = self.interval.saturating_mul(self.burst - 1);
        let wait = next.saturating_duration_since(now).saturating_sub(ahead);
        if deadline.is_some_and(|deadline| !wait.is_zero() && now + wait >= deadline) {
            return None;
        }
        *due = Some(next + self.interval);
        Some(wait)
    }
}

impl Default for RateLimit {
    /// 100 a second.
    fn default() -> Self {
        Self::per_second(100)
    }
}

impl<S> Layer<S> for RateLimit {
    type Service = AdmissionService<Self, S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService::new(self.clone(), inner)
    }
}

impl Admission for RateLimit {
    type Permit = Turn;

    fn enter<T: Operation>(&mut self, operation: &T) -> Decision<Turn> {
        match self.book(Instant::now(), operation.deadline()) {
            Some(Duration::ZERO) => Decision::Admit(Turn),
            Some(wait) => {
                let turn = async move {
                    tokio::time::sleep(wait).await;
                    Turn
                };
                Decision::Wait(wait_for(operation, "the rate limit left no turn before the deadline", turn))
            }
            None => Decision::Refused(
                Error::new(ErrorKind::Full, "the rate limit leaves no turn before the deadline")
                    .with("name", operation.name()),
            ),
        }
    }
}

/// A turn; nothing needs to be given back.
#[derive(Debug)]
pub struct Turn;

impl Permit for Turn {
    fn leave<R: Classify>(self, _: &crate::Result<R>) {}
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("interval", &self.interval)
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In any window of a period there are never more than a burst and what the rate adds to it.
        #[test]
        fn never_faster_than_the_rate(
            calls in 1_u32..50, burst in 1_u32..50, gaps in proptest::collection::vec(0_u64..200, 1..200)
        ) {
            let limit = RateLimit::new(calls, Duration::from_secs(1)).burst(burst);
            let start = Instant::now();
            let mut now = start;
            let mut starts = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                starts.push(now + limit.book(now, None).unwrap());
            }
            for (index, first) in starts.iter().enumerate() {
                let window = *first + Duration::from_secs(1);
                let within = starts[index..].iter().filter(|start| **start < window).count();
                prop_assert!(within <= (calls + burst) as usize + 1, "{within} of {calls} with burst {burst}");
            }
        }
    }

    #[test]
    fn a_period_of_any_length_and_any_burst_are_booked() {
        for period in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let (limit, now) = (RateLimit::new(1, period).burst(u32::MAX), Instant::now());
            for _ in 0..3 {
                assert_eq!(limit.book(now, None), Some(Duration::ZERO), "{period:?}");
            }
            let (limit, now) = (RateLimit::new(1, period), Instant::now());
            assert_eq!(limit.book(now, None), Some(Duration::ZERO), "{period:?}");
            assert!(limit.book(now, None).is_some_and(|wait| wait <= period), "{period:?}");
        }
    }

    #[test]
    fn a_turn_after_the_deadline_is_not_booked() {
        let (limit, now) = (RateLimit::per_second(1), Instant::now());
        assert_eq!(limit.book(now, None), Some(Duration::ZERO));
        assert_eq!(limit.book(now, Some(now + Duration::from_millis(500))), None);
        assert_eq!(limit.book(now, None), Some(Duration::from_secs(1)), "the refused call took no turn");
    }
}
