//! The part of a member in the group's leadership: it stands by and reads the leader's record at intervals, or it leads
//! and renews the record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::jobs::{Done, Jobs};
use crate::group::Record;
use crate::keyed::checkpoint::{Mark, Progress};
use crate::keyed::election::{self, Claimed, Known, Seen};
use crate::keyed::member::KeyedMember;
use event_transport::error::Result;

pub(super) struct Leadership {
    member: Arc<KeyedMember>,
    role: Role,
    /// Number of the leadership. A job that was started under an earlier one is void.
    term: u64,
    /// This member's name in the record, and the number of its last write.
    own: Progress,
    /// Start time of the last successful write.
    written: Instant,
    /// The group's marks when this member last led it.
    marks: BTreeMap<SmolStr, Mark>,
}

/// Whether this member leads or stands by.
enum Role {
    StandBy {
        /// Time at which the record is read again.
        look: Instant,
        looking: bool,
        seen: Option<Seen>,
    },
    Leads {
        /// Sequence of the record's last write.
        sequence: u64,
    },
}

impl Leadership {
    pub(super) fn new(member: Arc<KeyedMember>) -> Self {
        let now = Instant::now();
        let own = Progress {
            connection: member.client.id.clone(),
            member: member.client.next_id().to_string().into(),
            ..Progress::default()
        };
        let role = Role::StandBy { look: now, looking: false, seen: None };
        Self { member, role, term: 0, own, written: now, marks: BTreeMap::new() }
    }

    pub(super) fn leads(&self) -> bool {
        matches!(self.role, Role::Leads { .. })
    }

    pub(super) fn term(&self) -> u64 {
        self.term
    }

    /// Reads the leader's record when that is due. Returns the time at which to run again.
    pub(super) fn look(&mut self, now: Instant, record: &Record, jobs: &mut Jobs) -> Option<Instant> {
        let Role::StandBy { look, looking, seen } = &mut self.role else { return None };
        if *looking {
            return None;
        }
        if *look > now {
            return Some(*look);
        }
        *looking = true;
        let job = election::look(
            self.member.dead_letters.groups.clone(),
            self.member.group.clone(),
            record.lease(),
            *seen,
            Known { own: self.own.clone(), record: record.clone(), marks: self.marks.clone() },
        );
        jobs.start(job.map(Done::Claimed));
        None
    }

    /// Reads the leader's record as soon as possible, if this member stands by.
    pub(super) fn look_soon(&mut self) {
        if let Role::StandBy { look, .. } = &mut self.role {
            *look = Instant::now();
        }
    }

    /// Schedules the next read of the leader's record after one that had this result.
    pub(super) fn looked(&mut self, result: &Result<Claimed>, lease: Duration) {
        let Role::StandBy { look, looking, seen } = &mut self.role else { return };
        *looking = false;
        *look = Instant::now() + (lease / 4).min(Duration::from_secs(2));
        match result {
            Ok(Claimed::Led(now)) => *seen = Some(*now),
            Ok(Claimed::Raced) => *look = Instant::now(),
            _ => {}
        }
    }

    /// Leads from now on: the record was taken over by the write of this sequence, which was started at `asked`.
    pub(super) fn lead(&mut self, sequence: u64, asked: Instant, lease: Duration) {
        tracing::debug!(group = %self.member.group, sequence, "leads");
        self.term += 1;
        self.renewed(sequence, asked, lease);
    }

    /// Applies a successful write of the record, which was started at `asked`.
    pub(super) fn renewed(&mut self, sequence: u64, asked: Instant, lease: Duration) {
        self.role = Role::Leads { sequence };
        self.written = asked;
        // Ends shortly before a standby's timeout, so that two leaders never overlap.
        self.member.set_until(asked + lease - lease / 20);
    }

    /// Applies the sequence of an earlier write of this member that had arrived after all.
    pub(super) fn wrote_before(&mut self, sequence: u64) {
        self.role = Role::Leads { sequence };
    }

    /// Returns the time at which a leader without changes has to write.
    pub(super) fn renewal(&self, lease: Duration) -> Instant {
        self.written + lease / 3
    }

    /// Starts to write the leader's record. `left` means that this member resigns.
    pub(super) fn write(
        &mut self,
        now: Instant,
        left: bool,
        record: &Record,
        topics: BTreeMap<SmolStr, Mark>,
        jobs: &mut Jobs,
    ) {
        let Role::Leads { sequence } = self.role else { return };
        self.own.beat += 1;
        let progress =
            Progress { left, epoch: record.epoch, changes: record.changes, topics, ..self.own.clone() };
        let (client, group) = (self.member.client.clone(), self.member.group.clone());
        let within = client.config.request_timeout.min((record.lease() / 3).max(Duration::from_millis(500)));
        let term = self.term;
        let job = election::write(client, group, progress, sequence, within);
        jobs.start(job.map(move |result| Done::Written { term, asked: now, left, result }));
    }

    /// Stands by from now on, because another member leads. `marks` are the group's at the end of the leadership.
    pub(super) fn stand_by(&mut self, marks: BTreeMap<SmolStr, Mark>, lease: Duration) {
        self.term += 1;
        self.marks = marks;
        self.role = Role::StandBy { look: Instant::now() + lease / 4, looking: false, seen: None };
    }

    /// Forgets the group's marks, because the group was moved.
    pub(super) fn forget_marks(&mut self) {
        self.marks.clear();
    }

    /// Returns whether a member that stops has no part in the leadership any more. `gone` means that its subscription
    /// was dropped.
    pub(super) fn is_over(&self, gone: bool) -> bool {
        match self.role {
            Role::StandBy { looking, .. } => !looking,
            Role::Leads { .. } => gone && Instant::now() >= self.member.until(),
        }
    }
}
