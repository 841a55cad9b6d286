//! Claims on runs of fresh messages: the group's cursor moves and a lease says who has what it passed over.

use sqlx::Row;

use super::codec;
use super::connection::{Answers, Script};
use super::scan::Scan;
use crate::confirm::Answer;

/// A group's place in the log as last seen; the file may be further.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) scan: Scan,
    /// The row's cursor; `None` before it was read.
    pub(super) cursor: Option<i64>,
    pub(super) revision: i64,
}

/// A claim on a run of fresh messages.
pub(super) struct Claim {
    pub(super) group: i64,
    pub(super) revision: i64,
    pub(super) member: i64,
    /// The cursor that it starts from, and where it leaves it.
    pub(super) from: i64,
    pub(super) to: i64,
    /// First position and all, as runs; `None` only moves the cursor over what does not match.
    pub(super) pending: Option<(i64, Vec<u8>)>,
    pub(super) answer: Answer<Claimed>,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Ours, under this lease.
    Lease(i64),
    /// The cursor moved.
    Moved,
    /// Somebody else was there first, or the group or the membership changed.
    Refused,
}

impl Claim {
    pub(super) fn write(&self, script: &mut Script) -> (usize, Option<usize>) {
        let moved = script.statement(
            "UPDATE consumer_group SET cursor = ? WHERE id = ? AND cursor = ? AND revision = ? \
             AND (keyed = 0 OR active = ?) AND EXISTS (SELECT 1 FROM member WHERE id = ?) RETURNING id",
        );
        script.bind(self.to).bind(self.group).bind(self.from).bind(self.revision);
        script.bind(self.member).bind(self.member);
        let leased = self.pending.as_ref().map(|(first, pending)| {
            let step = script.statement(
                "INSERT INTO lease (grp, member, first, at, pending) SELECT ?, ?, ?, ?, ? WHERE changes() = 1 RETURNING id",
            );
            script.bind(self.group).bind(self.member).bind(*first).bind(codec::now()).bind(pending.as_slice());
            step
        });
        (moved, leased)
    }

    pub(super) fn finish(self, answers: &Answers, (moved, leased): (usize, Option<usize>)) {
        let lease = leased.and_then(|step| answers[step].first()).and_then(|row| row.try_get(0).ok());
        let claimed = match (lease, answers[moved].is_empty()) {
            (_, true) => Claimed::Refused,
            (Some(lease), false) => Claimed::Lease(lease),
            (None, false) => Claimed::Moved,
        };
        let _ = self.answer.send(Ok(claimed));
    }
}
