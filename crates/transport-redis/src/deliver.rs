//! Delivers messages to the consumer of a subscription, each registered as unsettled.

use std::sync::Arc;

use super::codec::EntryId;
use super::member::{Member, Unsettled};
use super::settle::{Holder, Settler};
use event_transport::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settle, Settlement};
use event_transport::message::Message;
use event_transport::subscription::Feed;

/// A member's end of its subscription.
pub(super) struct Deliverer {
    pub(super) member: Arc<Member>,
    pub(super) feed: Feed,
    pub(super) settle: Arc<dyn Settle>,
}

/// A message to be delivered.
pub(super) struct Fetched {
    pub(super) message: Arc<Message>,
    /// The id under which the message was first published.
    pub(super) origin: EntryId,
    pub(super) replayed: bool,
    /// Its subject is invalid.
    pub(super) ill_named: bool,
}

impl Deliverer {
    pub(super) fn new(member: Arc<Member>, settler: Arc<Settler>, feed: Feed) -> Self {
        Self { settle: Arc::new(Holder { member: member.clone(), settler }), member, feed }
    }

    /// Whether the member must fetch no more.
    pub(super) fn is_over(&self) -> bool {
        self.feed.stopped().is_cancelled()
            || self.member.closed.is_cancelled()
            || self.member.client.connection.closed.is_cancelled()
    }

    /// Number of further deliveries that may be fetched.
    pub(super) fn room(&self) -> usize {
        self.member.room(self.feed.free())
    }

    /// Delivers a message; gives it back to the group when the subscription is over or has no slot.
    pub(super) fn deliver(&self, fetched: Fetched, unsettled: Unsettled, over: bool) {
        let attempt = unsettled.attempt;
        let token = self.member.hold(unsettled);
        if fetched.ill_named {
            // A foreign message with an invalid subject matches no pattern; as a dead letter it is visible to operators.
            let rejection =
                Rejection::new(Reason::Undecodable, "the subject of this foreign message is invalid");
            drop(self.settle.settle(token, Settlement::Reject(rejection)));
            return;
        }
        let slot = if over { None } else { self.feed.try_slot() };
        let Some(slot) = slot else {
            drop(self.settle.settle(token, Settlement::Release));
            return;
        };
        let mut info = DeliveryInfo::new(attempt);
        info.position = Some(fetched.origin.position());
        info.published_at = fetched.origin.time();
        info.replayed = fetched.replayed;
        self.feed.push(Delivery::new(fetched.message, info, self.settle.clone(), token, slot));
    }
}
