//! Claims of fresh messages: a claim moves the group's cursor and stores a lease for the messages that it passed.

use sqlx::Row;

use super::codec;
use super::script::{Answers, Script};
use crate::confirm::Answer;

/// A claim of fresh messages.
pub(super) struct Claim {
    pub(super) group: i64,
    pub(super) revision: i64,
    pub(super) member: i64,
    /// The cursor before the claim and after it.
    pub(super) from: i64,
    pub(super) to: i64,
    /// The first position, and all positions encoded as runs; `None` only moves the cursor past messages that are not
    /// delivered.
    pub(super) pending: Option<(i64, Vec<u8>)>,
    pub(super) answer: Answer<Claimed>,
}

/// The result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The member has the messages, under the lease with this id.
    Lease(i64),
    /// The cursor moved; there were no messages to lease.
    Moved,
    /// Another member claimed first, or the group or the member's row changed.
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
