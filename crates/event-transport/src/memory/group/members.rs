//! The members of a group, and the queue of those that wait for an entry.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

/// A live subscription.
#[derive(Debug)]
pub(super) struct Member {
    id: u64,
    connection: u64,
    wake: Arc<Notify>,
    /// A stopped member fetches no more entries but keeps the ones that it has in flight.
    stopped: bool,
    pub(super) in_flight: usize,
}

#[derive(Debug, Default)]
pub(super) struct Members {
    all: Vec<Member>,
    /// Members that wait for an entry; the one that has waited longest comes first.
    idle: VecDeque<u64>,
}

impl Members {
    pub(super) fn join(&mut self, id: u64, connection: u64) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.all.push(Member { id, connection, wake: wake.clone(), stopped: false, in_flight: 0 });
        wake
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Member> {
        self.all.iter_mut().find(|member| member.id == id)
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.all.iter().any(|member| member.id == id)
    }

    /// Returns a member that the connection has opened.
    pub(super) fn of_connection(&self, connection: u64) -> Option<u64> {
        self.all.iter().find(|member| member.connection == connection).map(|member| member.id)
    }

    /// Returns the number of members that fetch entries.
    pub(super) fn live(&self) -> usize {
        self.all.iter().filter(|member| !member.stopped).count()
    }

    /// Marks the member as stopped: it fetches no more entries.
    pub(super) fn stop(&mut self, id: u64) {
        if let Some(member) = self.get(id) {
            member.stopped = true;
        }
        self.busy(id);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Member> {
        let at = self.all.iter().position(|member| member.id == id)?;
        Some(self.all.swap_remove(at))
    }

    /// Counts an entry of the member as no longer in flight.
    pub(super) fn remove_in_flight(&mut self, id: u64) {
        if let Some(member) = self.get(id) {
            member.in_flight = member.in_flight.saturating_sub(1);
        }
    }

    /// Counts no entry as in flight any more.
    pub(super) fn reset_in_flight(&mut self) {
        self.all.iter_mut().for_each(|member| member.in_flight = 0);
    }

    /// Records that the member waits for an entry.
    pub(super) fn wait(&mut self, id: u64) {
        if !self.idle.contains(&id) {
            self.idle.push_back(id);
        }
    }

    /// Records that the member does not wait.
    pub(super) fn busy(&mut self, id: u64) {
        self.idle.retain(|idle| *idle != id);
    }

    /// Wakes the member that has waited longest.
    pub(super) fn wake_one(&mut self) {
        while let Some(id) = self.idle.pop_front() {
            if let Some(member) = self.get(id) {
                return member.wake.notify_one();
            }
        }
    }

    /// Wakes all members that wait.
    pub(super) fn wake_all(&mut self) {
        while let Some(id) = self.idle.pop_front() {
            if let Some(member) = self.get(id) {
                member.wake.notify_one();
            }
        }
    }
}
