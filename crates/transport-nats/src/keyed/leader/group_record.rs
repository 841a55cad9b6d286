//! The group's record as this member last read it, and reads of it.

use std::sync::Arc;

use futures_util::FutureExt;

use super::jobs::{Done, Jobs};
use crate::group::Record;
use crate::keyed::member::KeyedMember;

pub(super) struct GroupRecord {
    member: Arc<KeyedMember>,
    pub(super) current: Record,
    reading: bool,
    /// The running read may have missed a change.
    again: bool,
}

/// The difference between a newly read record and the one before.
#[derive(PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The group's filters have changed, maybe several times.
    Filters,
    /// The group was moved.
    Moved,
}

impl GroupRecord {
    pub(super) fn new(member: Arc<KeyedMember>, current: Record) -> Self {
        Self { member, current, reading: false, again: false }
    }

    /// Reads the record, now or after the running read. Returns whether a read begins now.
    pub(super) fn reload(&mut self, jobs: &mut Jobs) -> bool {
        if std::mem::replace(&mut self.reading, true) {
            self.again = true;
            return false;
        }
        let (groups, group) = (self.member.dead_letters.groups.clone(), self.member.group.clone());
        let known = self.current.clone();
        jobs.start(async move { groups.standing(&group, &known).await }.map(Done::Reloaded));
        true
    }

    /// Notes the end of a read. Returns whether another one was requested meanwhile.
    pub(super) fn reloaded(&mut self) -> bool {
        self.reading = false;
        std::mem::take(&mut self.again)
    }

    /// Replaces the record by one that was read. Returns the difference, and the number of changes of the filters that
    /// were known before.
    pub(super) fn replace(&mut self, record: Record) -> (Change, u64) {
        let old = std::mem::replace(&mut self.current, record);
        let change = if self.current.epoch != old.epoch {
            Change::Moved
        } else if self.current.filters != old.filters || self.current.changes != old.changes {
            Change::Filters
        } else {
            Change::None
        };
        (change, old.changes)
    }
}
