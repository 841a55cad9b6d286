//! Rate limit: bounds the number of calls in a period; further calls wait for their turn.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;

use super::admission::{Admission, AdmissionService, Decision, Permit, wait_for};
use super::operation::{Classify, Operation};
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind};
use event_transport::sync::lock;

/// Admits calls at an even rate, with bursts of a size that can be set. All services and clients that this value and
/// its clones wrap share one rate.
///
/// A call beyond the rate waits for its turn. A request whose turn would come after its deadline is refused at once
/// (`RESOURCE_EXHAUSTED`). An event has no such deadline, so the limit slows a handler of events down but never fails
/// it.
///
/// This is the generic cell rate algorithm on tokio's clock: its whole state is one timestamp.
#[derive(Clone)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
    /// The time at which the next call would be due if calls came evenly.
    due: Arc<Mutex<Option<Instant>>>,
}

impl RateLimit {
    /// Creates a limit of `calls` (at least 1) in every `period` of at most [`LONGEST`](crate::LONGEST); up to
    /// `calls` of them may start at once.
    pub fn new(calls: u32, period: Duration) -> Self {
        let calls = calls.max(1);
        Self { interval: bounds::bounded(period) / calls, burst: calls, due: Arc::default() }
    }

    /// Creates a limit of `calls` in every second.
    pub fn per_second(calls: u32) -> Self {
        Self::new(calls, Duration::from_secs(1))
    }

    /// Sets the number of calls that may start at once, at least 1. Default: the calls of one period.
    #[must_use]
    pub fn burst(self, calls: u32) -> Self {
        Self { burst: calls.max(1), ..self }
    }

    /// Books the next turn and returns the wait until it; `None` when the turn would come after `deadline`.
    fn book(&self, now: Instant, deadline: Option<Instant>) -> Option<Duration> {
        let mut due = lock(&self.due);
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
    /// 100 calls a second.
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
                Decision::Wait(wait_for(operation, "the rate limit admits no call before the deadline", turn))
            }
            None => Decision::Refused(
                Error::new(ErrorKind::Full, "the rate limit admits no call before the deadline")
                    .with("name", operation.name()),
            ),
        }
    }
}

/// The right to make one call; nothing needs to be returned after the call.
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
        /// No window of one period contains more calls than one burst plus the calls that the rate adds.
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
