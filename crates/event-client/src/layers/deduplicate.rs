//! Deduplicate: skips a message that this process has already handled within the last minutes.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::error::of_layer;
use crate::message::MessageId;
use crate::service::{Incoming, Outcome};
use event_transport::error::{Error, Result};
use event_transport::sync::lock;

/// Acknowledges an event without calling its handler when that handler has already acknowledged the same id in this
/// process. The memory is bounded: 10 000 ids for 10 minutes by default. Each handler has its own memory.
///
/// This catches most events that a publisher repeats or a broker delivers twice. It is not a guarantee: another
/// process, a restart, or a repeat that arrives while the first delivery is still being handled gets through. Use the
/// inbox for work that must be done exactly once. Requests are never skipped, because each caller needs an answer;
/// neither are events that are replayed from the dead letters.
#[derive(Clone, Copy, Debug)]
pub struct Deduplicate {
    most: usize,
    age: Duration,
}

impl Deduplicate {
    /// Creates a layer that remembers up to `most` ids for up to `age`. An id takes about 100 bytes.
    pub const fn new(most: usize, age: Duration) -> Self {
        Self { most, age }
    }
}

impl Default for Deduplicate {
    /// 10 000 ids for 10 minutes.
    fn default() -> Self {
        Self::new(10_000, Duration::from_secs(600))
    }
}

impl<S> Layer<S> for Deduplicate {
    type Service = DeduplicateService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let memory = Memory { most: self.most, age: self.age, ..Memory::default() };
        DeduplicateService { inner, memory: Arc::new(Mutex::new(memory)) }
    }
}

/// The ids of handled messages, oldest first.
#[derive(Debug, Default)]
struct Memory {
    most: usize,
    age: Duration,
    seen: HashMap<MessageId, Instant>,
    order: VecDeque<(MessageId, Instant)>,
}

impl Memory {
    fn knows(&mut self, id: &MessageId, now: Instant) -> bool {
        self.forget(now);
        self.seen.contains_key(id)
    }

    fn remember(&mut self, id: MessageId, now: Instant) {
        self.seen.insert(id.clone(), now);
        self.order.push_back((id, now));
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((_, at)) = self.order.front() {
            if self.order.len() <= self.most && now.saturating_duration_since(*at) < self.age {
                break;
            }
            let (id, at) = self.order.pop_front().expect("there is a front");
            // The id was remembered again later; its later entry removes it.
            if self.seen.get(&id) == Some(&at) {
                self.seen.remove(&id);
            }
        }
    }
}

/// A handler wrapped by [`Deduplicate`].
#[derive(Clone)]
pub struct DeduplicateService<S> {
    inner: S,
    memory: Arc<Mutex<Memory>>,
}

impl<S> Service<Incoming> for DeduplicateService<S>
where
    S: Service<Incoming, Response = Outcome>,
    S::Error: Into<BoxError>,
{
    type Response = Outcome;
    type Error = Error;
    type Future = DeduplicateFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx).map_err(of_layer)
    }

    fn call(&mut self, incoming: Incoming) -> Self::Future {
        if incoming.is_request() || incoming.info().replayed {
            return DeduplicateFuture { call: Some(self.inner.call(incoming)), note: None };
        }
        let id = incoming.envelope().meta.id.clone();
        if lock(&self.memory).knows(&id, Instant::now()) {
            tracing::debug!(
                group = %incoming.handler().group, message.id = %id, "skipped a message that was handled before"
            );
            return DeduplicateFuture { call: None, note: None };
        }
        let note = Some((self.memory.clone(), id));
        DeduplicateFuture { call: Some(self.inner.call(incoming)), note }
    }
}

pin_project! {
    /// A call whose id is remembered when it succeeds, or a call that was skipped.
    pub struct DeduplicateFuture<F> {
        #[pin]
        call: Option<F>,
        note: Option<(Arc<Mutex<Memory>>, MessageId)>,
    }
}

impl<F, E> Future for DeduplicateFuture<F>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(call) = this.call.as_pin_mut() else { return Poll::Ready(Ok(Outcome::Ack)) };
        let result = ready!(call.poll(cx)).map_err(of_layer);
        if let (Ok(Outcome::Ack), Some((memory, id))) = (&result, this.note.take()) {
            lock(&memory).remember(id, Instant::now());
        }
        Poll::Ready(result)
    }
}

impl<S> fmt::Debug for DeduplicateService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeduplicateService").finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for DeduplicateFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeduplicateFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_by_number_and_by_age() {
        let mut memory = Memory { most: 3, age: Duration::from_secs(10), ..Memory::default() };
        let start = Instant::now();
        let id = |n: u32| MessageId::from(n.to_string());
        (0..5).for_each(|n| memory.remember(id(n), start));
        assert!(!memory.knows(&id(1), start) && memory.knows(&id(2), start) && memory.knows(&id(4), start));
        let later = start + Duration::from_secs(9);
        memory.remember(id(4), later);
        let later = start + Duration::from_secs(11);
        assert!(!memory.knows(&id(2), later) && memory.knows(&id(4), later), "its second time counts");
        assert!(!memory.knows(&id(4), start + Duration::from_secs(20)));
        assert!(memory.seen.is_empty() && memory.order.is_empty());
    }
}
