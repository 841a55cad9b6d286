//! A member of a group: its membership, and the task that leases entries to its subscription.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::Connection;
use super::feeding::{BATCH, Next, room, wait};
use super::group::Fetched;
use super::groups::GroupRef;
use super::settle::Settler;
use crate::Subscribe;
use crate::bounds;
use crate::delivery::{Delivery, DeliveryInfo, Settle};
use crate::error::Result;
use crate::message::Position;
use crate::subject::Group;
use crate::subscription::{Feed, Health};
use crate::telemetry::count_expired;

/// The membership of a live subscription in its group. On drop it leaves the group and its leases start to run out.
pub(super) struct Membership {
    connection: Arc<Connection>,
    group: GroupRef,
    id: u64,
    lease: Duration,
    wake: Arc<Notify>,
}

impl Membership {
    pub(super) fn join(connection: Arc<Connection>, name: Group, spec: &Subscribe) -> Result<Self> {
        let bus = &connection.bus;
        let id = bus.next_id();
        let now = Instant::now();
        let mut state = bus.lock();
        let state = &mut *state;
        connection.check()?;
        state.advance(now);
        let follows = connection.provision.group(state.compare(spec).as_ref())?;
        let group = match state.groups.find(&name) {
            Some(group) => {
                if follows {
                    state.change_group(&name, spec)?;
                }
                group
            }
            None => state.add_group(bus.next_id(), name, spec),
        };
        let wake = state.groups.get(group).expect("found under this lock").join(id, connection.id);
        Ok(Self { group, id, lease: spec.lease, wake, connection: connection.clone() })
    }

    fn fetch(&self, most: usize, out: &mut Vec<Fetched>) -> Next {
        let now = Instant::now();
        let mut state = self.connection.bus.lock();
        let state = &mut *state;
        state.advance(now);
        let next_due = state.delayed.next_due();
        let group = state.groups.get(self.group);
        let Some(group) = group.filter(|group| group.has_member(self.id)) else { return Next::End };
        group.advance(now);
        count_expired("memory", group.fetch(self.id, most, now, &mut state.log, out));
        if out.is_empty() {
            group.wait(self.id);
            let timers = [next_due, group.next_timer()];
            return Next::Wait(timers.into_iter().flatten().min());
        }
        // The remaining entries are for another member that has free slots.
        group.wake_one();
        Next::Deliver
    }

    fn stop(&self) {
        if let Some(group) = self.connection.bus.lock().groups.get(self.group) {
            group.stop(self.id);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let until = bounds::from_now(self.lease);
        if let Some(group) = self.connection.bus.lock().groups.get(self.group) {
            group.part(self.id, until);
        }
    }
}

/// Leases entries of the group to the subscription until it ends.
pub(super) async fn feed_member(feed: Feed, member: Membership) {
    let closed = &member.connection.closed;
    let settle: Arc<dyn Settle> = Arc::new(Settler::new(&member.connection, member.group, member.lease));
    let mut batch = Vec::with_capacity(feed.free().min(BATCH));
    feed.report(Health::Live);
    while room(&feed, closed).await {
        match member.fetch(feed.free().min(BATCH), &mut batch) {
            Next::Deliver => {
                for fetched in batch.drain(..) {
                    // Only this task takes slots, so the slots that were free before are still free.
                    let Some(slot) = feed.try_slot() else {
                        unreachable!("a slot was taken by another task")
                    };
                    let mut info = DeliveryInfo::new(fetched.attempt);
                    info.position = Some(Position(u128::from(fetched.number)));
                    info.published_at = Some(fetched.published_at);
                    info.replayed = fetched.replayed;
                    feed.push(Delivery::new(fetched.message, info, settle.clone(), fetched.token, slot));
                }
                tokio::task::coop::consume_budget().await;
            }
            Next::Wait(until) => wait(&feed, closed, &member.wake, until).await,
            Next::End => break,
        }
    }
    member.stop();
    feed.report(Health::Stopped);
    if !closed.is_cancelled() && feed.stopped().is_cancelled() {
        // Deliveries that the consumer has taken stay leased while it holds the subscription.
        tokio::select! {
            () = feed.gone().cancelled() => {}
            () = closed.cancelled() => {}
        }
    }
}
