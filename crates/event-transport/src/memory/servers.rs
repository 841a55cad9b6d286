//! The members that serve each subject of a bus: requests go to those that have capacity, in turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::IncomingRequest;
use crate::subject::Subject;
use crate::sync::lock;

#[derive(Debug, Default)]
pub(super) struct Servers(Mutex<HashMap<Subject, Pool>>);

#[derive(Debug, Default)]
struct Pool {
    members: Vec<Arc<Server>>,
    /// Index of the member whose turn it is.
    next: usize,
    /// Wakes a caller when a member has capacity again, and all callers when a member joins or leaves.
    freed: Arc<Notify>,
}

/// One member of a service.
#[derive(Debug)]
pub(super) struct Server {
    id: u64,
    pub(super) requests: mpsc::Sender<IncomingRequest>,
    max_in_flight: Arc<Semaphore>,
    pub(super) closed: CancellationToken,
    /// Notified when this member has capacity: one entry for each subject.
    freed: Mutex<Vec<Arc<Notify>>>,
}

/// Result of the search for a member that has capacity.
pub(super) enum Found {
    Room(Slot),
    Busy(Arc<Notify>),
    Nobody,
}

/// One unit of a member's `max_in_flight`, returned on drop.
pub(super) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    pub(super) server: Arc<Server>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.permit.take());
        for freed in lock(&self.server.freed).iter() {
            freed.notify_one();
        }
    }
}

impl Server {
    /// Returns a member that handles `max_in_flight` requests at a time, and the receiver of its requests.
    pub(super) fn new(
        id: u64,
        max_in_flight: usize,
        closed: CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<IncomingRequest>) {
        let (requests, incoming) = mpsc::channel(max_in_flight);
        let max_in_flight = Arc::new(Semaphore::new(max_in_flight));
        (Arc::new(Self { id, requests, max_in_flight, closed, freed: Mutex::default() }), incoming)
    }
}

impl Servers {
    pub(super) fn join(&self, subjects: &[Subject], server: &Arc<Server>) {
        let mut pools = lock(&self.0);
        let mut freed = lock(&server.freed);
        for subject in subjects {
            let pool = pools.entry(subject.clone()).or_default();
            pool.members.push(server.clone());
            pool.freed.notify_waiters();
            freed.push(pool.freed.clone());
        }
    }

    pub(super) fn leave(&self, subjects: &[Subject], server: &Server) {
        let mut pools = lock(&self.0);
        for subject in subjects {
            let Some(pool) = pools.get_mut(subject) else { continue };
            pool.members.retain(|member| member.id != server.id);
            pool.freed.notify_waiters(); // callers that wait must find out when the last member has left
            if pool.members.is_empty() {
                pools.remove(subject);
            }
        }
    }

    /// Returns the next member in turn that has capacity.
    pub(super) fn find(&self, subject: &Subject) -> Found {
        let mut pools = lock(&self.0);
        let Some(pool) = pools.get_mut(subject) else { return Found::Nobody };
        // A member whose receiver was dropped is about to leave.
        if pool.members.iter().all(|member| member.requests.is_closed()) {
            return Found::Nobody;
        }
        for step in 0..pool.members.len() {
            let at = (pool.next + step) % pool.members.len();
            let member = &pool.members[at];
            if member.requests.is_closed() {
                continue;
            }
            if let Ok(permit) = member.max_in_flight.clone().try_acquire_owned() {
                let server = member.clone();
                pool.next = at + 1;
                return Found::Room(Slot { permit: Some(permit), server });
            }
        }
        Found::Busy(pool.freed.clone())
    }
}
