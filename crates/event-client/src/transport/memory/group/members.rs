//! The members of a group: they join, wait for entries, are woken, stop and leave.

use std::cmp::Reverse;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{GroupState, State, Timer};

/// A live subscription.
#[derive(Debug)]
pub(in crate::transport::memory) struct Member {
    pub(in crate::transport::memory) id: u64,
    pub(in crate::transport::memory) connection: u64,
    pub(in crate::transport::memory) wake: Arc<Notify>,
    /// A stopped member fetches no more entries but keeps the ones that it has in flight.
    pub(in crate::transport::memory) stopped: bool,
    pub(super) in_flight: usize,
}

impl GroupState {
    pub(in crate::transport::memory) fn member(&mut self, id: u64) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    pub(in crate::transport::memory) fn join(&mut self, id: u64, connection: u64) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.members.push(Member { id, connection, wake: wake.clone(), stopped: false, in_flight: 0 });
        wake
    }

    /// Marks the member as stopped: it fetches no more entries.
    pub(in crate::transport::memory) fn stop(&mut self, id: u64) {
        if let Some(member) = self.member(id) {
            member.stopped = true;
        }
        self.idle.retain(|idle| *idle != id);
        self.wake_one(); // the stopped member may have consumed a wake-up for an entry that it will not fetch
    }

    /// Removes a member that has ended. Its entries in flight stay leased until `until`.
    pub(in crate::transport::memory) fn part(&mut self, id: u64, until: Instant) {
        self.stop(id);
        let Some(at) = self.members.iter().position(|member| member.id == id) else { return };
        if self.members.swap_remove(at).in_flight > 0 {
            for (index, entry) in &mut self.entries {
                if let State::InFlight { member, lease_until } = &mut entry.state
                    && *member == id
                {
                    *lease_until = Some(until);
                    let generation = entry.generation;
                    self.timers.push(Reverse(Timer { at: until, index: index as u32, generation }));
                }
            }
        }
        self.wake_all(); // another member must watch the new timers
    }

    /// Removes a member whose connection closed. Its entries in flight are released at once.
    pub(in crate::transport::memory) fn evict(&mut self, id: u64) {
        let theirs: Vec<u32> = (self.entries.iter())
            .filter(|(_, entry)| matches!(entry.state, State::InFlight { member, .. } if member == id))
            .map(|(index, _)| index as u32)
            .collect();
        for index in theirs {
            self.release(index);
        }
        self.stop(id);
        self.members.retain(|member| member.id != id);
        self.wake_all();
    }

    /// Records that a member waits for an entry.
    pub(in crate::transport::memory) fn wait(&mut self, id: u64) {
        if !self.idle.contains(&id) {
            self.idle.push_back(id);
        }
    }

    /// Wakes one waiting member when an entry is ready.
    pub(in crate::transport::memory) fn wake_one(&mut self) {
        if self.has_ready() {
            while let Some(id) = self.idle.pop_front() {
                if let Some(member) = self.member(id) {
                    return member.wake.notify_one();
                }
            }
        }
    }

    /// Wakes all waiting members, so that they check the timers again.
    pub(in crate::transport::memory) fn wake_all(&mut self) {
        while let Some(id) = self.idle.pop_front() {
            if let Some(member) = self.member(id) {
                member.wake.notify_one();
            }
        }
    }
}
