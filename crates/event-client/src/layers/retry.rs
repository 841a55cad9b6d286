//! Retry: repeats a failed call a few times in this process before its failure is reported.

use std::time::Duration;

use tokio::time::Sleep;
use tower::retry::Policy;
use tower_layer::Layer;

use super::operation::{Class, Classify, Operation, classify};
use crate::service::RetryPolicy;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind};

/// Repeats a call in the same process when it failed through no fault of its own, for faults that last less than a
/// few seconds.
///
/// Around handlers of events this layer acts before the stored retries: the delivery stays in this process, its lease
/// is renewed, and only when all attempts have failed does the failure count as one attempt of the handler's own
/// [`RetryPolicy`]. Requests, both sent and served, are repeated only when they are declared `idempotent` and no
/// chunk of a streamed answer has been sent; a request that found no responder is repeated in any case. No attempt
/// starts after the deadline.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    policy: RetryPolicy,
}

impl Retry {
    /// Creates a retry of `attempts` attempts in total. The waits between them are random, below 50 ms, 100 ms, … up
    /// to 2 s.
    pub const fn attempts(attempts: u32) -> Self {
        let policy = RetryPolicy::attempts(attempts);
        Self { policy: policy.backoff(Duration::from_millis(50), Duration::from_secs(2)) }
    }

    /// Sets the upper bounds of the first wait and of every wait. When a handler requests a wait longer than `cap`,
    /// this layer does not repeat the call; the bus delivers the message again after that wait.
    #[must_use]
    pub const fn backoff(self, base: Duration, cap: Duration) -> Self {
        Self { policy: self.policy.backoff(base, cap) }
    }
}

impl Default for Retry {
    /// Three attempts.
    fn default() -> Self {
        Self::attempts(3)
    }
}

impl<S> Layer<S> for Retry {
    type Service = tower::retry::Retry<Attempts, S>;

    fn layer(&self, inner: S) -> Self::Service {
        tower::retry::Retry::new(Attempts { policy: self.policy, made: 0 }, inner)
    }
}

/// The attempts at one call.
#[derive(Clone, Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    made: u32,
}

impl<T: Operation, R: Classify> Policy<T, R, Error> for Attempts {
    type Future = Sleep;

    fn retry(&mut self, operation: &mut T, result: &mut Result<R, Error>) -> Option<Sleep> {
        self.made += 1;
        if classify(result) != Class::Failed || self.policy.is_last(self.made) {
            return None;
        }
        let nobody_was_there = matches!(result, Err(error) if error.kind() == ErrorKind::NoResponder);
        if !operation.is_repeatable() && !nobody_was_there {
            return None;
        }
        let wait = match result.as_ref().ok().and_then(Classify::retry_after) {
            Some(asked) if asked > self.policy.cap => return None,
            Some(asked) => asked,
            None => self.policy.wait(self.made),
        };
        let next = bounds::from_now(wait);
        if operation.deadline().is_some_and(|deadline| next >= deadline)
            || operation.draining().is_some_and(|draining| draining.is_cancelled())
        {
            return None;
        }
        tracing::debug!(
            name = operation.name(), message.id = %operation.message().id, attempt = self.made,
            wait_ms = bounds::millis(wait), "the call failed, retrying it in this process"
        );
        Some(tokio::time::sleep_until(next))
    }

    fn clone_request(&mut self, operation: &T) -> Option<T> {
        (self.policy.attempts > 1).then(|| operation.clone())
    }
}
