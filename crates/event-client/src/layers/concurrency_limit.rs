//! Concurrency limit: bounds the number of calls that run at a time, over all services and clients that share it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer;

use super::admission::{Admission, AdmissionService, Decision, Permit, wait_for};
use super::operation::Operation;

/// Bounds the number of calls that run at a time, over all services and clients that this value and its clones wrap:
/// several handlers that share one database, for example. (For a single handler use
/// [`Handler::concurrency`](crate::service::Handler::concurrency), which also bounds the number of messages that are
/// fetched.)
///
/// A call beyond the bound waits for a permit. A request that still waits at its deadline ends with
/// `RESOURCE_EXHAUSTED`.
#[derive(Clone)]
pub struct ConcurrencyLimit {
    permits: Arc<Semaphore>,
    most: usize,
}

impl ConcurrencyLimit {
    /// Creates a limit of `most` calls at a time, at least 1.
    pub fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(most)), most }
    }

    /// Returns the number of calls that run now.
    pub fn running(&self) -> usize {
        self.most - self.permits.available_permits().min(self.most)
    }
}

impl<S> Layer<S> for ConcurrencyLimit {
    type Service = AdmissionService<Self, S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService::new(self.clone(), inner)
    }
}

impl Admission for ConcurrencyLimit {
    type Permit = OwnedSemaphorePermit;

    fn enter<T: Operation>(&mut self, operation: &T) -> Decision<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Decision::Admit(permit);
        }
        let permits = self.permits.clone();
        let permit = async move { permits.acquire_owned().await.expect("never closed") };
        Decision::Wait(wait_for(
            operation,
            "the concurrency limit had no free permit before the deadline",
            permit,
        ))
    }
}

/// Dropping the permit returns it to the semaphore.
impl Permit for OwnedSemaphorePermit {}

impl fmt::Debug for ConcurrencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimit")
            .field("most", &self.most)
            .field("running", &self.running())
            .finish()
    }
}
