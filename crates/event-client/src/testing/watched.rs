//! The transport of a `TestBus`: the memory transport, with a record of the messages published through it.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::record::Records;
use crate::bus::{Bus, Settings};
use crate::confirm::Confirm;
use crate::message::Message;
use crate::subscription::Subscription;
use crate::transport::{Admin, Capabilities, MemoryTransport, Mode, Receipt, Requests, Subscribe, Transport};
use event_transport::bounds;
use event_transport::error::Result;

pub(super) struct Watched {
    memory: Arc<MemoryTransport>,
    records: Arc<Records>,
    /// Whether this is the service's connection to the bus and not the test's.
    emits: bool,
}

impl Watched {
    pub(super) fn bus(
        memory: Arc<MemoryTransport>,
        records: Arc<Records>,
        emits: bool,
        settings: Settings,
    ) -> Bus {
        Bus::with_transport(Arc::new(Self { memory, records, emits }), settings)
            .expect("the default durability is always supported")
    }
}

impl Transport for Watched {
    fn capabilities(&self) -> &Capabilities {
        self.memory.capabilities()
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        let subject = message.subject.clone();
        let due = message.deliver_at.map(|at| bounds::from_now(bounds::left_until(at)));
        let copy = self.emits.then(|| message.clone());
        let mut confirm = self.memory.publish(message);
        // The memory transport confirms at once. Only stored messages are recorded.
        match (&mut confirm).now_or_never() {
            Some(stored) => {
                if stored.as_ref().is_ok_and(|receipt| !receipt.duplicate) {
                    self.records.published(copy, &subject, due);
                }
                Confirm::ready(stored)
            }
            None => confirm,
        }
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        let broadcast = (self.emits && spec.mode == Mode::Broadcast).then(|| spec.filters.clone());
        Box::pin(async move {
            let subscription = self.memory.subscribe(spec).await?;
            broadcast.into_iter().for_each(|filters| self.records.listens(filters));
            Ok(subscription)
        })
    }

    fn requests(&self) -> &dyn Requests {
        self.memory.requests()
    }

    fn admin(&self) -> &dyn Admin {
        self.memory.admin()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.memory.close()
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.memory.fmt(f)
    }
}
