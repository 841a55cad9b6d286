//! One open connection to a bus: the rights and the end that its subscriptions, publishes and requests share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::bus::Bus;
use crate::Provision;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) bus: Arc<Bus>,
    pub(super) id: u64,
    /// Whether this connection may create or change groups.
    pub(super) provision: Provision,
    pub(super) closed: CancellationToken,
}

impl Connection {
    pub(super) fn open(bus: Arc<Bus>, provision: Provision) -> Arc<Self> {
        Arc::new(Self { id: bus.next_id(), bus, provision, closed: CancellationToken::new() })
    }

    /// Returns an error when the connection is closed.
    pub(super) fn check(&self) -> Result<()> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Releases the unsettled deliveries of this connection and ends all its waits. A second call has no effect.
    pub(super) fn close(&self) {
        let mut state = self.bus.lock();
        // Cancelled under the lock, so that no member joins after the loop below has evicted the members.
        self.closed.cancel();
        for group in state.groups.iter_mut() {
            group.evict(self.id);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this connection to the bus has been closed")
}
