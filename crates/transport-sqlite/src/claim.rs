//! Claims of fresh messages: a claim moves the group's cursor and stores a lease for the messages that it passed.

use sqlx::Row;

use super::codec;
use super::lease;
use super::schema::{NEVER, POSTPONED};
use super::script::{Answers, Script};
use event_transport::confirm::Answer;

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
    pub(super) postponed: Vec<Postpone>,
    pub(super) answer: Answer<Claimed>,
}

/// Messages of one key that a claim passes without leasing them to its member.
pub(super) struct Postpone {
    /// The row to which their positions are added, and one after its last position.
    pub(super) row: Option<(i64, i64)>,
    /// Their positions; there is at least one.
    pub(super) seqs: Vec<i64>,
}

/// The places of a claim's results among the script's results.
pub(super) struct Steps {
    moved: usize,
    leased: Option<usize>,
    postponed: Vec<usize>,
}

/// The result of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The cursor moved: the member has the messages under the lease with the id `lease`, if there are any, and the
    /// postponed ones are in the rows `postponed`.
    Moved { lease: Option<i64>, postponed: Vec<i64> },
    /// Another member claimed first, or the group or the member's row changed.
    Refused,
}

impl Claim {
    pub(super) fn write(&self, script: &mut Script) -> Steps {
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
        let postponed = self.write_postponed(script);
        Steps { moved, leased, postponed }
    }

    /// Adds the statements that store the positions of the postponed messages, if the claim has moved the cursor.
    fn write_postponed(&self, script: &mut Script) -> Vec<usize> {
        // The active member alone moves the cursor, so it is at `to` only if this claim has moved it.
        const MOVED: &str = "EXISTS (SELECT 1 FROM consumer_group WHERE id = ? AND cursor = ? AND revision = ? AND active = ?)";
        let bind_moved = |script: &mut Script| {
            script.bind(self.group).bind(self.to).bind(self.revision).bind(self.member);
        };
        if self.postponed.is_empty() {
            return Vec::new();
        }
        script.statement(&format!(
            "INSERT INTO member (grp, process, until) SELECT ?, ?, ? \
             WHERE NOT EXISTS (SELECT 1 FROM member WHERE grp = ? AND process = ?) AND {MOVED}"
        ));
        script.bind(self.group).bind(POSTPONED).bind(i64::MAX).bind(self.group).bind(POSTPONED);
        bind_moved(script);
        let write = |postpone: &Postpone| {
            // A build that does not know postponed messages may have returned those of the row to the group: then the
            // row is made again with the new positions alone.
            let step = script.statement(&format!(
                "INSERT INTO lease (id, grp, member, first, at, pending) \
                 SELECT ?, ?, (SELECT id FROM member WHERE grp = ? AND process = ?), ?, ?, ? WHERE {MOVED} \
                 ON CONFLICT (id) DO UPDATE SET pending = CAST(lease.pending || ? AS BLOB) RETURNING id"
            ));
            let Postpone { row, seqs } = postpone;
            script.bind(row.map(|(id, _)| id)).bind(self.group).bind(self.group).bind(POSTPONED);
            script.bind(seqs.first().copied()).bind(NEVER).bind(lease::encode(seqs.iter().copied()));
            bind_moved(script);
            let end = row.map_or(0, |(_, end)| end);
            script.bind(lease::encode_after(end, seqs.iter().copied()));
            step
        };
        self.postponed.iter().map(write).collect()
    }

    pub(super) fn finish(self, answers: &Answers, steps: Steps) {
        let id = |step: usize| answers[step].first().and_then(|row| row.try_get(0).ok());
        let claimed = if answers[steps.moved].is_empty() {
            Claimed::Refused
        } else {
            let postponed = steps.postponed.into_iter().filter_map(id).collect();
            Claimed::Moved { lease: steps.leased.and_then(id), postponed }
        };
        let _ = self.answer.send(Ok(claimed));
    }
}
