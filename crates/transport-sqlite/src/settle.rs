//! Settlements of deliveries (ack, retry, reject, release), many of which are written in one transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use smol_str::SmolStr;

use super::codec;
use super::group_feed::GroupFeed;
use super::keyed::Lanes;
use super::lease::Lease;
use super::leased::{LeaseSlot, StoredMessage};
use super::schema::PARKED;
use super::script::{Answers, Script, ids, json};
use event_transport::confirm::Answer;
use event_transport::delivery::{Reason, lease_lost};
use event_transport::error::Error;
use event_transport::message::Message;

/// A settlement that waits for the writer.
pub(super) struct Settled {
    pub(super) feed: Arc<GroupFeed>,
    pub(super) held: LeaseSlot,
    pub(super) how: How,
    pub(super) fsync: bool,
    pub(super) lane: Option<Lane>,
    pub(super) answer: Option<Answer<()>>,
}

/// A key whose order depends on this settlement.
pub(super) struct Lane {
    pub(super) lanes: Arc<Lanes>,
    pub(super) key: SmolStr,
    /// Whether the key becomes idle afterwards.
    pub(super) release: bool,
}

pub(super) enum How {
    Done,
    Again(Box<Again>),
    Dead(Box<Dead>),
}

pub(super) struct Again {
    copy: Copy,
    attempts: u32,
    due: i64,
    /// `None` keeps the stored error.
    error: Option<SmolStr>,
}

pub(super) struct Dead {
    pub(super) copy: Copy,
    pub(super) attempts: u32,
    pub(super) reason: Reason,
    pub(super) error: SmolStr,
}

/// The copy of a message that a row of `redelivery` or `dead` stores.
pub(super) struct Copy {
    message: Arc<Message>,
    seq: i64,
    published: i64,
    first_at: i64,
    record: Vec<u8>,
}

impl Copy {
    pub(super) fn new(entry: &StoredMessage) -> Self {
        let mut record = Vec::new();
        codec::encode(&mut record, &entry.message, None);
        let StoredMessage { message, seq, published, first_at, .. } = entry.clone();
        Self { message, seq, published, first_at, record }
    }

    fn key(&self) -> Option<String> {
        self.message.key.as_ref().map(SmolStr::to_string)
    }
}

impl How {
    pub(super) fn again(entry: &StoredMessage, attempts: u32, due: i64, error: Option<SmolStr>) -> Self {
        Self::Again(Box::new(Again { copy: Copy::new(entry), attempts, due, error }))
    }
}

/// The settlements of one transaction.
pub(super) struct Plan {
    items: Vec<Settled>,
    /// For each lease: the indexes of the messages that are settled.
    leases: HashMap<i64, (Arc<Lease>, Vec<usize>)>,
}

/// The places of a plan's results among the script's results.
#[derive(Default)]
pub(super) struct Steps {
    leases: Vec<usize>,
    rows: Vec<usize>,
}

impl Plan {
    pub(super) fn new(items: Vec<Settled>) -> Self {
        let mut leases: HashMap<i64, (Arc<Lease>, Vec<usize>)> = HashMap::new();
        for item in &items {
            if let LeaseSlot::Fresh { lease, index } = &item.held {
                leases.entry(lease.id).or_insert_with(|| (lease.clone(), Vec::new())).1.push(*index);
            }
        }
        Self { items, leases }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds the statements. A settlement under a lost lease changes nothing.
    pub(super) fn write(&self, script: &mut Script) -> Steps {
        let mut steps = Steps::default();
        if self.is_empty() {
            return steps;
        }
        self.write_copies(script);
        // Fresh messages: the settled ones are removed from the lease; an empty lease is deleted.
        let mut finished = Vec::new();
        let mut shrunk = Vec::new();
        for (id, (lease, indexes)) in &self.leases {
            match lease.without(indexes) {
                None => finished.push(*id),
                Some(pending) => shrunk.push((*id, pending)),
            }
        }
        if !finished.is_empty() {
            steps
                .leases
                .push(script.statement(
                    "DELETE FROM lease WHERE id IN (SELECT value FROM json_each(?)) RETURNING id",
                ));
            script.bind(json(finished));
        }
        steps.leases.extend(script.rows(
            "UPDATE lease SET pending = v.column2 FROM",
            2,
            "AS v WHERE lease.id = v.column1 RETURNING id",
            shrunk,
            |script, (id, pending)| {
                script.bind(id).bind(pending);
            },
        ));
        // Rows of `redelivery`: they become claimable again or are deleted, but only while they belong to the member
        // that settles them.
        let mut done: HashMap<i64, Vec<i64>> = HashMap::new();
        let mut back = Vec::new();
        for item in &self.items {
            let LeaseSlot::Row { id, member } = item.held else { continue };
            match &item.how {
                How::Again(again) => back.push((id, member, again)),
                How::Done | How::Dead(_) => done.entry(member).or_default().push(id),
            }
        }
        steps.rows.extend(script.rows(
            "UPDATE redelivery SET member = NULL, due = v.column3, attempts = v.column4, error = ifnull(v.column5, error) FROM",
            5,
            "AS v WHERE redelivery.id = v.column1 AND redelivery.member = v.column2 RETURNING id",
            back,
            |script, (id, member, again)| {
                script.bind(id).bind(member).bind(again.due).bind(i64::from(again.attempts));
                script.bind(again.error.as_ref().map(SmolStr::to_string));
            },
        ));
        for (member, rows) in done {
            steps.rows.push(script.statement(
                "DELETE FROM redelivery WHERE id IN (SELECT value FROM json_each(?)) AND member = ? RETURNING id",
            ));
            script.bind(json(rows)).bind(member);
        }
        self.write_promotions(script);
        steps
    }

    /// Stores copies of the messages to deliver again and of dead letters. This comes before the leases are changed,
    /// because the statements check that the lease still exists.
    fn write_copies(&self, script: &mut Script) {
        let mut again = Vec::new();
        let mut dead: [Vec<_>; 2] = Default::default();
        for item in &self.items {
            match (&item.how, &item.held) {
                (How::Done, _) | (How::Again(_), LeaseSlot::Row { .. }) => {}
                (How::Again(row), LeaseSlot::Fresh { lease, .. }) => {
                    again.push((lease.id, lease.member, item, row))
                }
                (How::Dead(row), LeaseSlot::Fresh { lease, .. }) => {
                    dead[0].push((lease.id, lease.member, item, row))
                }
                (How::Dead(row), LeaseSlot::Row { id, member }) => dead[1].push((*id, *member, item, row)),
            }
        }
        script.rows(
            "INSERT INTO redelivery (grp, seq, key, attempts, due, subject, published, first_at, replayed, error, data) \
             SELECT column3, column4, column5, column6, column7, column8, column9, column10, 0, column11, column12 FROM",
            12,
            "WHERE EXISTS (SELECT 1 FROM lease WHERE id = column1 AND member = column2)",
            again,
            |script, (lease, member, item, row)| {
                let copy = &row.copy;
                script.bind(lease).bind(member).bind(item.feed.id).bind(copy.seq).bind(copy.key());
                script.bind(i64::from(row.attempts)).bind(row.due).bind(copy.message.subject.as_str());
                script.bind(copy.published).bind((row.attempts > 0).then_some(copy.first_at));
                script.bind(row.error.as_deref().unwrap_or_default()).bind(copy.record.as_slice());
            },
        );
        let now = codec::now();
        for (table, rows) in ["lease", "redelivery"].into_iter().zip(dead) {
            script.rows(
                "INSERT INTO dead (grp, seq, key, subject, reason, error, attempts, published, first_at, dead_at, data) \
                 SELECT column3, column4, column5, column6, column7, column8, column9, column10, column11, column12, column13 FROM",
                13,
                &format!("WHERE EXISTS (SELECT 1 FROM {table} WHERE id = column1 AND member = column2)"),
                rows,
                |script, (held, member, item, row)| {
                    let copy = &row.copy;
                    script.bind(held).bind(member).bind(item.feed.name.as_str()).bind(copy.seq).bind(copy.key());
                    script.bind(copy.message.subject.as_str()).bind(codec::reason_word(row.reason));
                    script.bind(codec::reason_error(row.reason, &row.error));
                    script.bind(i64::from(row.attempts)).bind(copy.published).bind(copy.first_at).bind(now);
                    script.bind(copy.record.as_slice());
                },
            );
        }
    }

    /// Makes the first message of each affected key due, if it was parked behind an earlier one.
    fn write_promotions(&self, script: &mut Script) {
        let mut keys: HashMap<i64, HashSet<&str>> = HashMap::new();
        for item in &self.items {
            if let Some(lane) = &item.lane {
                keys.entry(item.feed.id).or_default().insert(&lane.key);
            }
        }
        for (group, keys) in keys {
            let keys: Vec<_> = keys.into_iter().collect();
            script.statement(
                "UPDATE redelivery SET due = 0 WHERE due = ? AND id IN (SELECT (SELECT id FROM redelivery AS first \
                 WHERE first.grp = ? AND first.key = wanted.value ORDER BY seq, id LIMIT 1) FROM json_each(?) AS wanted)",
            );
            script.bind(PARKED).bind(group).bind(serde_json::to_string(&keys).unwrap_or_default());
        }
    }

    /// Confirms the settlements; to be called after the commit. Returns whether messages became deliverable again.
    pub(super) fn finish(self, answers: &Answers, steps: Steps) -> bool {
        let alive = |steps: &[usize]| -> HashSet<i64> {
            steps.iter().flat_map(|step| ids(&answers[*step])).collect()
        };
        let (leases, rows) = (alive(&steps.leases), alive(&steps.rows));
        for (lease, indexes) in self.leases.values() {
            lease.settle(indexes);
        }
        let mut again = false;
        for item in self.items.into_iter().rev() {
            let held = match &item.held {
                LeaseSlot::Fresh { lease, .. } => leases.contains(&lease.id),
                LeaseSlot::Row { id, .. } => rows.contains(id),
            };
            if matches!(item.how, How::Again(_)) || item.lane.is_some() {
                item.feed.look_for_redeliveries();
                again = true;
            }
            if let Some(lane) = item.lane.filter(|lane| lane.release) {
                lane.lanes.release(&lane.key);
            }
            if let Some(answer) = item.answer {
                let _ = answer.send(if held { Ok(()) } else { Err(lease_lost()) });
            }
        }
        again
    }

    /// Resolves every confirmation with an error. Returns the settlements, which must be tried again.
    pub(super) fn fail(mut self, error: impl Fn() -> Error) -> Vec<Settled> {
        for item in &mut self.items {
            if let Some(answer) = item.answer.take() {
                let _ = answer.send(Err(error()));
            }
        }
        self.items
    }
}
