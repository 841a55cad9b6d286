//! One subscription's membership in its group: its unsettled deliveries, and how their settlements reach the writer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::database::Database;
use super::error::closed;
use super::group_feed::GroupFeed;
use super::keyed::{KeyQueue, Lanes};
use super::leased::{LeaseSlot, Leased, StoredMessage};
use super::membership::Membership;
use super::schema::PARKED;
use super::segment;
use super::settle::{Copy, Dead, How, Lane, Settled};
use event_transport::Provision;
use event_transport::confirm::Confirm;
use event_transport::delivery::{Delivery, DeliveryInfo, Settle, Settlement, Token, lease_lost};
use event_transport::subject::Pattern;
use event_transport::subscription::Feed;
use event_transport::sync::lock;

/// One subscription's membership in its group.
pub(super) struct Member {
    /// A reference to itself: [`Settle`] has only `&self`, and settling needs an `Arc`.
    me: Weak<Self>,
    pub(super) database: Arc<Database>,
    pub(super) feed: Arc<GroupFeed>,
    pub(super) membership: Arc<Membership>,
    pub(super) terms: Terms,
    /// `Some` for a keyed subscription.
    pub(super) lanes: Option<Arc<Lanes>>,
    unsettled: Mutex<Unsettled>,
    /// Signalled when a delivery was settled.
    pub(super) settled: Notify,
    pub(super) ends: Ends,
}

/// The stages in which a membership ends.
pub(super) struct Ends {
    /// Cancelled to stop fetching.
    pub(super) stop: CancellationToken,
    /// Cancelled when fetching has stopped.
    pub(super) idle: CancellationToken,
    /// Cancelled when the membership has ended.
    pub(super) left: CancellationToken,
}

/// The deliveries that are not settled yet.
#[derive(Default)]
struct Unsettled {
    next: Token,
    outstanding: HashMap<Token, Leased>,
    closed: bool,
}

/// The settings of a subscription.
pub(super) struct Terms {
    /// Whether settlements are confirmed only after an fsync.
    pub(super) fsync: bool,
    pub(super) keyed: bool,
    pub(super) max_in_flight: usize,
    /// The subscription's patterns, and the permission to create its group again if another program removes it.
    pub(super) filters: Vec<Pattern>,
    pub(super) provision: Provision,
}

impl Member {
    pub(super) fn new(
        database: Arc<Database>,
        feed: Arc<GroupFeed>,
        membership: Membership,
        terms: Terms,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            database,
            feed,
            membership: Arc::new(membership),
            lanes: terms.keyed.then(|| Arc::new(Lanes::new(terms.max_in_flight))),
            terms,
            unsettled: Mutex::default(),
            settled: Notify::new(),
            ends: Ends { stop, idle: CancellationToken::new(), left: CancellationToken::new() },
        })
    }

    /// Makes a delivery of `leased` and records it as outstanding until it is settled.
    pub(super) fn deliver(self: &Arc<Self>, leased: Leased, slot: OwnedSemaphorePermit) -> Delivery {
        let StoredMessage { message, seq, attempt, published, replayed, .. } = &leased.message;
        let mut info = DeliveryInfo::new(*attempt);
        info.position = Some(segment::position(*seq));
        info.published_at = codec::timestamp(*published);
        info.replayed = *replayed;
        let message = message.clone();
        let mut unsettled = lock(&self.unsettled);
        let token = unsettled.next;
        unsettled.next += 1;
        unsettled.outstanding.insert(token, leased);
        drop(unsettled);
        Delivery::new(message, info, self.clone(), token, slot)
    }

    /// Delivers messages that waited in memory for their key and may be delivered now.
    pub(super) fn hand_over_ready(self: &Arc<Self>, feed: &Feed) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let mut any = false;
        while lanes.lock().has_ready() {
            let Some(slot) = feed.try_slot() else { break };
            let Some(leased) = lanes.lock().ready() else { break };
            feed.push(self.deliver(leased, slot));
            any = true;
        }
        any
    }

    /// The number of unsettled deliveries.
    pub(super) fn outstanding(&self) -> usize {
        lock(&self.unsettled).outstanding.len()
    }

    /// Continues with the new row `id` and forgets the outstanding deliveries, which belong to other members now.
    pub(super) fn restart(&self, id: i64) {
        lock(&self.unsettled).outstanding.clear();
        if let Some(lanes) = &self.lanes {
            *lanes.lock() = KeyQueue::default();
        }
        self.membership.restart(id);
    }

    /// Stops fetching, releases the unsettled deliveries and ends the membership.
    pub(super) async fn close(self: &Arc<Self>) {
        self.ends.stop.cancel();
        self.ends.idle.cancelled().await;
        for confirm in self.give_up() {
            // A delivery that cannot be released goes to another member when the lease runs out.
            let _ = confirm.await;
        }
        self.settled.notify_one();
        self.ends.left.cancelled().await;
    }

    /// Settles an expired message, which is not delivered. `key` is its key if it has a row of its own.
    pub(super) fn discard(self: &Arc<Self>, held: LeaseSlot, key: Option<SmolStr>) {
        let lane = key.and_then(|key| self.lane(key, false));
        self.database.queue.settle(Settled {
            feed: self.feed.clone(),
            held,
            how: How::Done,
            fsync: false,
            lane,
            answer: None,
        });
    }

    /// Releases all deliveries when the bus closes. Later settlements return that the bus is closed.
    fn give_up(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let mut unsettled = lock(&self.unsettled);
        unsettled.closed = true;
        let given: Vec<_> = unsettled.outstanding.drain().map(|(_, leased)| leased).collect();
        drop(unsettled);
        let mut confirms: Vec<_> =
            given.into_iter().map(|leased| self.send(leased, Settlement::Release)).collect();
        confirms.extend(self.unpark());
        confirms
    }

    /// Writes an undelivered message to the file, where it waits for an earlier one of its key.
    pub(super) fn park(self: &Arc<Self>, parked: Leased) -> Confirm<()> {
        let Leased { held, message } = parked;
        let (answer, confirm) = Confirm::channel();
        let how = How::again(&message, message.attempt - 1, PARKED, None);
        let lane = message.message.key.clone().and_then(|key| self.lane(key, false));
        let feed = self.feed.clone();
        self.database.queue.settle(Settled { feed, held, how, fsync: false, lane, answer: Some(answer) });
        confirm
    }

    /// Moves all messages that wait in memory to the file.
    pub(super) fn unpark(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let Some(lanes) = &self.lanes else { return Vec::new() };
        let parked = lanes.lock().drain();
        parked.into_iter().map(|parked| self.park(parked)).collect()
    }

    /// The part of a settlement on which the order of `key` depends; `None` unless the subscription is keyed.
    fn lane(&self, key: SmolStr, release: bool) -> Option<Lane> {
        let lanes = self.lanes.clone()?;
        Some(Lane { lanes, key, release })
    }

    fn send(self: &Arc<Self>, leased: Leased, settlement: Settlement) -> Confirm<()> {
        let Leased { held, message } = leased;
        let (answer, confirm) = Confirm::channel();
        let how = match settlement {
            Settlement::Ack => How::Done,
            Settlement::Retry { after, error } => {
                How::again(&message, message.attempt, due(after), Some(error))
            }
            Settlement::Defer { after } => How::again(&message, message.attempt - 1, due(after), None),
            Settlement::Release => How::again(&message, message.attempt - 1, 0, None),
            Settlement::Reject(rejection) => How::Dead(Box::new(Dead {
                copy: Copy::new(&message),
                attempts: message.attempt,
                reason: rejection.reason,
                error: rejection.error,
            })),
        };
        let mut lane = None;
        if let (Some(lanes), Some(key)) = (&self.lanes, &message.message.key) {
            let done = matches!(how, How::Done | How::Dead(_));
            // If this message is done, the next of its key in memory may be delivered at once. If it goes back to the
            // file, it must be written before the next message of the key is read from the file, and the messages that
            // wait in memory must follow it there.
            if !(done && lanes.lock().finish(key)) {
                let behind = lanes.lock().unpark(key);
                for parked in behind {
                    drop(self.park(parked));
                }
                lane = self.lane(key.clone(), true);
            }
        }
        self.database.queue.settle(Settled {
            feed: self.feed.clone(),
            held,
            how,
            fsync: self.terms.fsync,
            lane,
            answer: Some(answer),
        });
        if let Some(lanes) = &self.lanes {
            lanes.changed.notify_one();
        }
        self.settled.notify_one();
        confirm
    }
}

/// The due time of a message that waits for `after`; below [`PARKED`].
fn due(after: Duration) -> i64 {
    codec::now_and(after).min(PARKED - 1)
}

// Settling needs an `Arc` of the member, which `me` provides.
impl Settle for Member {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        let mut unsettled = lock(&self.unsettled);
        let Some(leased) = unsettled.outstanding.remove(&token) else {
            let error = if unsettled.closed { closed("settle") } else { lease_lost() };
            return Confirm::ready(Err(error));
        };
        drop(unsettled);
        match self.me.upgrade() {
            Some(me) => me.send(leased, settlement),
            None => Confirm::ready(Err(closed("settle"))),
        }
    }

    fn in_progress(&self, _: Token) -> Confirm<()> {
        self.membership.keep();
        let until = codec::now_and(self.membership.lease);
        let renewed = self.database.queue.renew(vec![self.membership.id()], until);
        Confirm::boxed(async move {
            if renewed.await?.is_empty() { Err(lease_lost().during("in progress")) } else { Ok(()) }
        })
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.membership.id()).finish_non_exhaustive()
    }
}
