//! One subscription's membership in its group: its unsettled deliveries, and how their settlements reach the writer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::Database;
use super::error::{closed, lease_lost};
use super::group::GroupFeed;
use super::keyed::{KeyQueue, Parked};
use super::lease::Lease;
use super::publish;
use super::schema::PARKED;
use super::settle::{Copy, Dead, How, Lane, Settled};
use crate::confirm::Confirm;
use crate::delivery::{Delivery, DeliveryInfo, Settle, Settlement, Token};
use crate::message::Message;
use crate::subject::Pattern;
use crate::transport::Provision;

/// One subscription's membership in its group.
pub(super) struct Member {
    /// A reference to itself: [`Settle`] has only `&self`, and settling needs an `Arc`.
    me: Weak<Self>,
    pub(super) database: Arc<Database>,
    pub(super) feed: Arc<GroupFeed>,
    /// The id of its row; it has a new row after the leases were lost.
    pub(super) id: AtomicI64,
    pub(super) lease: Duration,
    /// The time of the last `in_progress` call of a handler; it matters once the automatic renewal has ended.
    pub(super) told: Mutex<Instant>,
    /// Whether settlements are confirmed only after an fsync.
    fsync: bool,
    /// The subscription's patterns, and the permission to create its group again if another program removes it.
    pub(super) filters: Vec<Pattern>,
    pub(super) provision: Provision,
    /// `Some` for a keyed subscription.
    pub(super) lanes: Option<Mutex<KeyQueue>>,
    state: Mutex<State>,
    /// Signalled when a delivery was settled.
    pub(super) settled: Notify,
    /// Whether the leases ran out and the row was deleted.
    pub(super) lost: AtomicBool,
    /// Whether it is the active member of its keyed group.
    pub(super) active: AtomicBool,
    /// The highest number of messages that may wait in memory for others of their key.
    pub(super) room: usize,
    /// `stop` is cancelled to stop fetching, `idle` when fetching has stopped, `left` when the membership has ended.
    pub(super) stop: CancellationToken,
    pub(super) idle: CancellationToken,
    pub(super) left: CancellationToken,
}

#[derive(Default)]
struct State {
    next: Token,
    outstanding: HashMap<Token, Outstanding>,
    closed: bool,
}

struct Outstanding {
    held: LeaseSlot,
    entry: StoredMessage,
}

/// The place of a delivery's lease in the file.
#[derive(Clone, Debug)]
pub(super) enum LeaseSlot {
    /// In a lease of fresh messages.
    Fresh { lease: Arc<Lease>, index: usize },
    /// In a row of `redelivery`.
    Row { id: i64, member: i64 },
}

/// A message with its delivery history in this group.
#[derive(Clone, Debug)]
pub(super) struct StoredMessage {
    pub(super) message: Arc<Message>,
    pub(super) seq: i64,
    /// The attempt number of this delivery.
    pub(super) attempt: u32,
    pub(super) published: i64,
    pub(super) first_at: i64,
    pub(super) replayed: bool,
}

/// The settings of a subscription.
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) fsync: bool,
    pub(super) keyed: bool,
    pub(super) max_in_flight: usize,
    pub(super) filters: Vec<Pattern>,
    pub(super) provision: Provision,
}

impl Member {
    pub(super) fn new(
        database: Arc<Database>,
        feed: Arc<GroupFeed>,
        id: i64,
        terms: Terms,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let Terms { lease, fsync, keyed, max_in_flight, filters, provision } = terms;
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            database,
            feed,
            id: AtomicI64::new(id),
            lease,
            told: Mutex::new(Instant::now()),
            fsync,
            filters,
            provision,
            lanes: keyed.then(Mutex::default),
            state: Mutex::default(),
            settled: Notify::new(),
            lost: AtomicBool::new(false),
            active: AtomicBool::new(false),
            room: max_in_flight.saturating_mul(4).clamp(256, 4096),
            stop,
            idle: CancellationToken::new(),
            left: CancellationToken::new(),
        })
    }

    /// Makes a delivery of `entry` and records it as outstanding until it is settled.
    pub(super) fn deliver(
        self: &Arc<Self>,
        held: LeaseSlot,
        entry: StoredMessage,
        slot: OwnedSemaphorePermit,
    ) -> Delivery {
        let mut info = DeliveryInfo::new(entry.attempt);
        info.position = Some(publish::position(entry.seq));
        info.published_at = codec::timestamp(entry.published);
        info.replayed = entry.replayed;
        let message = entry.message.clone();
        let mut state = self.state.lock().expect("not poisoned");
        let token = state.next;
        state.next += 1;
        state.outstanding.insert(token, Outstanding { held, entry });
        drop(state);
        Delivery::new(message, info, self.clone(), token, slot)
    }

    /// The number of unsettled deliveries.
    pub(super) fn outstanding(&self) -> usize {
        self.state.lock().expect("not poisoned").outstanding.len()
    }

    /// Continues with the new row `id` and forgets the outstanding deliveries, which belong to other members now.
    pub(super) fn restart(&self, id: i64) {
        self.state.lock().expect("not poisoned").outstanding.clear();
        if let Some(lanes) = &self.lanes {
            *lanes.lock().expect("not poisoned") = KeyQueue::default();
        }
        self.id.store(id, Ordering::Release);
        self.active.store(false, Ordering::Release);
        self.lost.store(false, Ordering::Release);
    }

    /// To be called when the message of `key` in flight has been written back to the file or settled there: the next
    /// message of the key may be claimed.
    pub(super) fn release_lane(&self, key: &SmolStr) {
        if let Some(lanes) = &self.lanes {
            lanes.lock().expect("not poisoned").release(key);
        }
        self.settled.notify_one();
    }

    /// Stops fetching, releases the unsettled deliveries and ends the membership.
    pub(super) async fn close(self: &Arc<Self>) {
        self.stop.cancel();
        self.idle.cancelled().await;
        for confirm in self.give_up() {
            // A delivery that cannot be released goes to another member when the lease runs out.
            let _ = confirm.await;
        }
        self.settled.notify_one();
        self.left.cancelled().await;
    }

    /// Deletes the row of an expired message, which is not delivered.
    pub(super) fn discard_row(self: &Arc<Self>, row: i64, member: i64, key: Option<SmolStr>) {
        let lane = key.filter(|_| self.lanes.is_some()).map(|key| Lane {
            member: self.clone(),
            key,
            release: false,
        });
        self.database.inbox.settle(Settled {
            feed: self.feed.clone(),
            held: LeaseSlot::Row { id: row, member },
            how: How::Done,
            fsync: false,
            lane,
            answer: None,
        });
    }

    /// Releases all deliveries when the bus closes. Later settlements return that the bus is closed.
    fn give_up(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let mut state = self.state.lock().expect("not poisoned");
        state.closed = true;
        let given: Vec<_> = state.outstanding.drain().map(|(_, outstanding)| outstanding).collect();
        drop(state);
        let mut confirms: Vec<_> =
            given.into_iter().map(|outstanding| self.send(outstanding, Settlement::Release)).collect();
        confirms.extend(self.unpark());
        confirms
    }

    /// Writes an undelivered message to the file, where it waits for an earlier one of its key.
    pub(super) fn park(self: &Arc<Self>, parked: Parked) -> Confirm<()> {
        let Parked { held, entry } = parked;
        let (answer, confirm) = Confirm::channel();
        let how = How::again(&entry, entry.attempt - 1, PARKED, None);
        let lane = entry.message.key.clone().map(|key| Lane { member: self.clone(), key, release: false });
        let feed = self.feed.clone();
        self.database.inbox.settle(Settled { feed, held, how, fsync: false, lane, answer: Some(answer) });
        confirm
    }

    /// Moves all messages that wait in memory to the file.
    pub(super) fn unpark(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let Some(lanes) = &self.lanes else { return Vec::new() };
        let parked = lanes.lock().expect("not poisoned").drain();
        parked.into_iter().map(|parked| self.park(parked)).collect()
    }

    fn send(self: &Arc<Self>, outstanding: Outstanding, settlement: Settlement) -> Confirm<()> {
        let Outstanding { held, entry } = outstanding;
        let (answer, confirm) = Confirm::channel();
        let how = match settlement {
            Settlement::Ack => How::Done,
            Settlement::Retry { after, error } => How::again(&entry, entry.attempt, due(after), Some(error)),
            Settlement::Defer { after } => How::again(&entry, entry.attempt - 1, due(after), None),
            Settlement::Release => How::again(&entry, entry.attempt - 1, 0, None),
            Settlement::Reject(rejection) => How::Dead(Box::new(Dead {
                copy: Copy::new(&entry),
                attempts: entry.attempt,
                reason: rejection.reason,
                error: rejection.error,
            })),
        };
        let mut lane = None;
        if let (Some(lanes), Some(key)) = (&self.lanes, &entry.message.key) {
            let done = matches!(how, How::Done | How::Dead(_));
            // If this message is done, the next of its key in memory may be delivered at once. If it goes back to the
            // file, it must be written before the next message of the key is read from the file, and the messages that
            // wait in memory must follow it there.
            if !(done && lanes.lock().expect("not poisoned").finish(key)) {
                let behind = lanes.lock().expect("not poisoned").unpark(key);
                for parked in behind {
                    drop(self.park(parked));
                }
                lane = Some(Lane { member: self.clone(), key: key.clone(), release: true });
            }
        }
        self.database.inbox.settle(Settled {
            feed: self.feed.clone(),
            held,
            how,
            fsync: self.fsync,
            lane,
            answer: Some(answer),
        });
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
        let mut state = self.state.lock().expect("not poisoned");
        let Some(outstanding) = state.outstanding.remove(&token) else {
            let error = if state.closed { closed("settle") } else { lease_lost() };
            return Confirm::ready(Err(error));
        };
        drop(state);
        match self.me.upgrade() {
            Some(me) => me.send(outstanding, settlement),
            None => Confirm::ready(Err(closed("settle"))),
        }
    }

    fn in_progress(&self, _: Token) -> Confirm<()> {
        let id = self.id.load(Ordering::Acquire);
        *self.told.lock().expect("not poisoned") = Instant::now();
        let renewed = self.database.inbox.renew(vec![id], codec::now_and(self.lease));
        Confirm::boxed(async move {
            if renewed.await?.is_empty() { Err(lease_lost().during("in progress")) } else { Ok(()) }
        })
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}
