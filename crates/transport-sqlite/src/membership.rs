//! The row of a member in the file: its lease, which the housekeeping renews, and whether the member still has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;

use event_transport::sync::lock;

/// The row of one member.
#[derive(Debug)]
pub(super) struct Membership {
    /// The id of the row; the member has a new row after the leases were lost.
    id: AtomicI64,
    pub(super) group: i64,
    pub(super) lease: Duration,
    /// Whether the leases ran out and the row was deleted.
    lost: AtomicBool,
    /// Whether it is the active member of its keyed group.
    active: AtomicBool,
    /// The time of the last `in_progress` call of a handler; it matters once the automatic renewal has ended.
    used: Mutex<Instant>,
}

impl Membership {
    pub(super) fn new(id: i64, group: i64, lease: Duration) -> Self {
        Self {
            id: AtomicI64::new(id),
            group,
            lease,
            lost: AtomicBool::new(false),
            active: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
        }
    }

    pub(super) fn id(&self) -> i64 {
        self.id.load(Ordering::Acquire)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// It is the active member of its keyed group, or it is not any more.
    pub(super) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Release);
    }

    /// Its row does not exist any more.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.set_active(false);
    }

    /// Continues with the new row `id`.
    pub(super) fn restart(&self, id: i64) {
        self.id.store(id, Ordering::Release);
        self.set_active(false);
        self.lost.store(false, Ordering::Release);
    }

    /// A handler renews the lease.
    pub(super) fn keep(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// The time at which a handler last renewed the lease.
    pub(super) fn kept(&self) -> Instant {
        *lock(&self.used)
    }
}

/// The members of this process whose leases are renewed, by the ids of their rows.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<HashMap<i64, Weak<Membership>>>);

impl Members {
    /// Renews the lease of `member` from now on, under its present row.
    pub(super) fn add(&self, member: &Arc<Membership>) {
        lock(&self.0).insert(member.id(), Arc::downgrade(member));
    }

    /// Renews the lease of the row `id` no more.
    pub(super) fn remove(&self, id: i64) {
        lock(&self.0).remove(&id);
    }

    pub(super) fn all(&self) -> Vec<Arc<Membership>> {
        let mut members = lock(&self.0);
        members.retain(|_, member| member.strong_count() > 0);
        members.values().filter_map(Weak::upgrade).collect()
    }
}
