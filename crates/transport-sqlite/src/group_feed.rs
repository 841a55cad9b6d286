//! The state that the members of a group in this process share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::codec;
use super::filters::Filters;
use super::scan::Scan;
use super::schema::PARKED;
use event_transport::subject::Group;
use event_transport::sync::lock;

/// A group's position in the log as this process last knew it; other processes may have moved it further in the file.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) scan: Scan,
    /// The row's cursor; `None` when it must be read again.
    pub(super) cursor: Option<i64>,
    pub(super) revision: i64,
}

/// The state that the members of a group in this process share.
#[derive(Debug)]
pub(super) struct GroupFeed {
    pub(super) id: i64,
    pub(super) name: Group,
    /// There may be due redeliveries that no member has looked for yet.
    redeliver: AtomicBool,
    /// [`Wake::redeliveries`](super::wake::Wake::redeliveries) when a member last looked for them.
    looked: AtomicU64,
    /// The time at which the next known redelivery is due, nanoseconds since 1970.
    pub(super) next_due: AtomicI64,
    /// The lock lets one member at a time claim fresh messages.
    pub(super) fresh: tokio::sync::Mutex<Fresh>,
    /// The row as it was last read, from which it can be created again if another program removes it.
    known: Mutex<Known>,
}

/// A group's row as a member last read it.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) cursor: i64,
    pub(super) revision: i64,
    /// `None` before it was read.
    pub(super) filters: Option<Filters>,
}

impl GroupFeed {
    fn new(id: i64, name: Group) -> Self {
        Self {
            id,
            name,
            redeliver: AtomicBool::new(true),
            looked: AtomicU64::new(0),
            next_due: AtomicI64::new(PARKED),
            fresh: Default::default(),
            known: Mutex::default(),
        }
    }

    /// Lets the next member that fetches look for due redeliveries.
    pub(super) fn look_for_redeliveries(&self) {
        self.redeliver.store(true, Ordering::Release);
    }

    /// Whether a member must look for due redeliveries; it is `false` for the others from then on. `called` is the
    /// number of times that every group was told to look for them.
    pub(super) fn takes_look(&self, called: u64) -> bool {
        let told = self.looked.swap(called, Ordering::AcqRel) != called;
        self.redeliver.swap(false, Ordering::AcqRel)
            || told
            || self.next_due.load(Ordering::Acquire) <= codec::now()
    }

    /// The row as a member last read it.
    pub(super) fn known(&self) -> Known {
        lock(&self.known).clone()
    }

    /// Remembers the row's cursor, and its revision and filters if they were read too.
    pub(super) fn note(&self, cursor: i64, row: Option<(i64, &Filters)>) {
        let mut known = lock(&self.known);
        known.cursor = cursor;
        if let Some((revision, filters)) = row {
            (known.revision, known.filters) = (revision, Some(filters.clone()));
        }
    }
}

/// The groups with a subscription in this process.
#[derive(Debug, Default)]
pub(super) struct Groups(Mutex<HashMap<i64, Weak<GroupFeed>>>);

impl Groups {
    /// The shared state of the group with the row `id`.
    pub(super) fn join(&self, id: i64, name: Group) -> Arc<GroupFeed> {
        let mut groups = lock(&self.0);
        groups.retain(|_, feed| feed.strong_count() > 0);
        if let Some(feed) = groups.get(&id).and_then(Weak::upgrade) {
            return feed;
        }
        let feed = Arc::new(GroupFeed::new(id, name));
        groups.insert(id, Arc::downgrade(&feed));
        feed
    }

    /// Makes the members in this process read their group's row again.
    pub(super) async fn forget_places(&self) {
        let feeds: Vec<_> = {
            let groups = lock(&self.0);
            groups.values().filter_map(Weak::upgrade).collect()
        };
        for feed in feeds {
            feed.fresh.lock().await.cursor = None;
        }
    }
}
