//! What consumers say of their deliveries, and how it reaches the file: many at a time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::{Answers, Database, Script, json};
use super::error::{closed, lease_lost};
use super::keyed::{Lanes, Parked};
use super::lease::Lease;
use super::publish;
use super::schema::PARKED;
use super::subscribe::GroupFeed;
use super::writer::ids;
use crate::confirm::{Answer, Confirm};
use crate::delivery::{Delivery, DeliveryInfo, Reason, Settle, Settlement, Token};
use crate::error::Error;
use crate::message::Message;

/// One subscription's membership in its group.
pub(super) struct Member {
    /// Deliveries keep hold of the member through this.
    me: Weak<Self>,
    pub(super) database: Arc<Database>,
    pub(super) feed: Arc<GroupFeed>,
    /// Its row; a new one after the leases were lost.
    pub(super) id: AtomicI64,
    pub(super) lease: Duration,
    /// When a handler last said that it still works: counts when nobody renews any more.
    pub(super) told: Mutex<Instant>,
    /// Settlements are confirmed after an fsync.
    fsync: bool,
    /// Of a keyed subscription.
    pub(super) lanes: Option<Mutex<Lanes>>,
    state: Mutex<State>,
    /// Signalled when a delivery was settled.
    pub(super) settled: Notify,
    /// The leases ran out: the row is gone.
    pub(super) lost: AtomicBool,
    /// The one member of its keyed group that works.
    pub(super) active: AtomicBool,
    /// Messages that may wait in memory behind others of their key.
    pub(super) room: usize,
    /// Stops fetching; nothing is fetched any more; the membership has ended.
    pub(super) stop: CancellationToken,
    pub(super) idle: CancellationToken,
    pub(super) left: CancellationToken,
}

#[derive(Default)]
struct State {
    next: Token,
    outstanding: HashMap<Token, Outstanding>,
    closed: bool,
}

struct Outstanding {
    held: Held,
    entry: Entry,
}

/// Where a delivery's lease is written.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// In a lease of fresh messages.
    Fresh { lease: Arc<Lease>, index: usize },
    /// In a row of `redelivery`.
    Row { id: i64, member: i64 },
}

/// A message and what is known of its past with this group.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) seq: i64,
    /// This delivery's number.
    pub(super) attempt: u32,
    pub(super) published: i64,
    pub(super) first_at: i64,
    pub(super) replayed: bool,
}

/// What a subscription asked for.
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) fsync: bool,
    pub(super) keyed: bool,
    pub(super) credit: usize,
}

impl Member {
    pub(super) fn new(
        database: Arc<Database>,
        feed: Arc<GroupFeed>,
        id: i64,
        terms: Terms,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let Terms { lease, fsync, keyed, credit } = terms;
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            database,
            feed,
            id: AtomicI64::new(id),
            lease,
            told: Mutex::new(Instant::now()),
            fsync,
            lanes: keyed.then(Mutex::default),
            state: Mutex::default(),
            settled: Notify::new(),
            lost: AtomicBool::new(false),
            active: AtomicBool::new(false),
            room: credit.saturating_mul(4).clamp(256, 4096),
            stop,
            idle: CancellationToken::new(),
            left: CancellationToken::new(),
        })
    }

    /// A delivery of `entry`, on record until it is settled.
    pub(super) fn deliver(
        self: &Arc<Self>,
        held: Held,
        entry: Entry,
        slot: OwnedSemaphorePermit,
    ) -> Delivery {
        let mut info = DeliveryInfo::new(entry.attempt);
        info.position = Some(publish::position(entry.seq));
        info.published_at = codec::timestamp(entry.published);
        info.replayed = entry.replayed;
        let message = entry.message.clone();
        let mut state = self.state.lock().expect("not poisoned");
        let token = state.next;
        state.next += 1;
        state.outstanding.insert(token, Outstanding { held, entry });
        drop(state);
        Delivery::new(message, info, self.clone(), token, slot)
    }

    /// How many deliveries are not settled.
    pub(super) fn outstanding(&self) -> usize {
        self.state.lock().expect("not poisoned").outstanding.len()
    }

    /// Goes on as the new row `id`: what was outstanding belongs to others now.
    pub(super) fn restart(&self, id: i64) {
        self.state.lock().expect("not poisoned").outstanding.clear();
        if let Some(lanes) = &self.lanes {
            *lanes.lock().expect("not poisoned") = Lanes::default();
        }
        self.id.store(id, Ordering::Release);
        self.active.store(false, Ordering::Release);
        self.lost.store(false, Ordering::Release);
    }

    /// The message of `key` that was out is back in the file or gone from it: the next may go.
    pub(super) fn release_lane(&self, key: &SmolStr) {
        if let Some(lanes) = &self.lanes {
            lanes.lock().expect("not poisoned").release(key);
        }
        self.settled.notify_one();
    }

    /// Stops fetching, hands back what is out and ends the membership.
    pub(super) async fn close(self: &Arc<Self>) {
        self.stop.cancel();
        self.idle.cancelled().await;
        for confirm in self.give_up() {
            // What cannot be handed back goes to others when the lease runs out.
            let _ = confirm.await;
        }
        self.settled.notify_one();
        self.left.cancelled().await;
    }

    /// An expired message's row is done without being delivered.
    pub(super) fn discard_row(self: &Arc<Self>, row: i64, member: i64, key: Option<SmolStr>) {
        let lane = key.filter(|_| self.lanes.is_some()).map(|key| Lane {
            member: self.clone(),
            key,
            release: false,
        });
        self.database.inbox.settle(Settled {
            feed: self.feed.clone(),
            held: Held::Row { id: row, member },
            how: How::Done,
            fsync: false,
            lane,
            answer: None,
        });
    }

    /// Gives everything up: for a closing bus. Later settlements answer that it is closed.
    fn give_up(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let mut state = self.state.lock().expect("not poisoned");
        state.closed = true;
        let given: Vec<_> = state.outstanding.drain().map(|(_, outstanding)| outstanding).collect();
        drop(state);
        let mut confirms: Vec<_> =
            given.into_iter().map(|outstanding| self.send(outstanding, Settlement::Release)).collect();
        confirms.extend(self.unpark());
        confirms
    }

    /// Gives a message back that nobody had, to wait in the file behind another of its key.
    pub(super) fn park(self: &Arc<Self>, parked: Parked) -> Confirm<()> {
        let Parked { held, entry } = parked;
        let (answer, confirm) = Confirm::channel();
        let how = How::again(&entry, entry.attempt - 1, PARKED, None);
        let lane = entry.message.key.clone().map(|key| Lane { member: self.clone(), key, release: false });
        let feed = self.feed.clone();
        self.database.inbox.settle(Settled { feed, held, how, fsync: false, lane, answer: Some(answer) });
        confirm
    }

    /// Moves all that waits in memory behind other messages to the file.
    pub(super) fn unpark(self: &Arc<Self>) -> Vec<Confirm<()>> {
        let Some(lanes) = &self.lanes else { return Vec::new() };
        let parked = lanes.lock().expect("not poisoned").drain();
        parked.into_iter().map(|parked| self.park(parked)).collect()
    }

    fn send(self: &Arc<Self>, outstanding: Outstanding, settlement: Settlement) -> Confirm<()> {
        let Outstanding { held, entry } = outstanding;
        let (answer, confirm) = Confirm::channel();
        let how = match settlement {
            Settlement::Ack => How::Done,
            Settlement::Retry { after, error } => {
                let due = codec::now()
                    .saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX))
                    .min(PARKED - 1);
                How::again(&entry, entry.attempt, due, Some(error))
            }
            Settlement::Release => How::again(&entry, entry.attempt - 1, 0, None),
            Settlement::Reject(rejection) => How::Dead(Box::new(Dead {
                copy: Copy::new(&entry),
                attempts: entry.attempt,
                reason: rejection.reason,
                error: rejection.error,
            })),
        };
        let mut lane = None;
        if let (Some(lanes), Some(key)) = (&self.lanes, &entry.message.key) {
            let done = matches!(how, How::Done | How::Dead(_));
            // The next of the key in memory may go as soon as this one is done. What goes back to the file must be
            // there before anybody looks there for what comes next; what waits in memory follows it.
            if !(done && lanes.lock().expect("not poisoned").finish(key)) {
                let behind = lanes.lock().expect("not poisoned").unpark(key);
                for parked in behind {
                    drop(self.park(parked));
                }
                lane = Some(Lane { member: self.clone(), key: key.clone(), release: true });
            }
        }
        self.database.inbox.settle(Settled {
            feed: self.feed.clone(),
            held,
            how,
            fsync: self.fsync,
            lane,
            answer: Some(answer),
        });
        self.settled.notify_one();
        confirm
    }
}

/// [`Settle`] wants `&self`; this is the member with a hand on itself.
impl Settle for Member {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        let mut state = self.state.lock().expect("not poisoned");
        let Some(outstanding) = state.outstanding.remove(&token) else {
            let error = if state.closed { closed("settle") } else { lease_lost() };
            return Confirm::ready(Err(error));
        };
        drop(state);
        match self.me.upgrade() {
            Some(me) => me.send(outstanding, settlement),
            None => Confirm::ready(Err(closed("settle"))),
        }
    }

    fn in_progress(&self, _: Token) -> Confirm<()> {
        let id = self.id.load(Ordering::Acquire);
        *self.told.lock().expect("not poisoned") = Instant::now();
        let renewed = self.database.inbox.renew(vec![id], codec::now() + self.lease.as_nanos() as i64);
        Confirm::boxed(async move {
            if renewed.await?.is_empty() { Err(lease_lost().during("in progress")) } else { Ok(()) }
        })
    }
}

/// A settlement on its way to the file.
pub(super) struct Settled {
    feed: Arc<GroupFeed>,
    held: Held,
    how: How,
    pub(super) fsync: bool,
    lane: Option<Lane>,
    answer: Option<Answer<()>>,
}

/// A key whose order depends on this settlement.
struct Lane {
    member: Arc<Member>,
    key: SmolStr,
    /// The key is free again afterwards.
    release: bool,
}

enum How {
    Done,
    Again(Box<Again>),
    Dead(Box<Dead>),
}

struct Again {
    copy: Copy,
    attempts: u32,
    due: i64,
    /// `None` keeps the last one.
    error: Option<SmolStr>,
}

struct Dead {
    copy: Copy,
    attempts: u32,
    reason: Reason,
    error: SmolStr,
}

/// A message as its row keeps it.
struct Copy {
    message: Arc<Message>,
    seq: i64,
    published: i64,
    first_at: i64,
    record: Vec<u8>,
}

impl Copy {
    fn new(entry: &Entry) -> Self {
        let mut record = Vec::new();
        codec::encode(&mut record, &entry.message, None);
        let Entry { message, seq, published, first_at, .. } = entry.clone();
        Self { message, seq, published, first_at, record }
    }

    fn key(&self) -> Option<String> {
        self.message.key.as_ref().map(SmolStr::to_string)
    }
}

impl How {
    fn again(entry: &Entry, attempts: u32, due: i64, error: Option<SmolStr>) -> Self {
        Self::Again(Box::new(Again { copy: Copy::new(entry), attempts, due, error }))
    }
}

/// The settlements of one transaction.
pub(super) struct Plan {
    items: Vec<Settled>,
    /// Which items settle messages of which lease.
    leases: HashMap<i64, (Arc<Lease>, Vec<usize>)>,
}

/// Where the answers of a plan stand.
#[derive(Default)]
pub(super) struct Steps {
    leases: Vec<usize>,
    rows: Vec<usize>,
}

impl Plan {
    pub(super) fn new(items: Vec<Settled>) -> Self {
        let mut leases: HashMap<i64, (Arc<Lease>, Vec<usize>)> = HashMap::new();
        for item in &items {
            if let Held::Fresh { lease, index } = &item.held {
                leases.entry(lease.id).or_insert_with(|| (lease.clone(), Vec::new())).1.push(*index);
            }
        }
        Self { items, leases }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds the statements. What a lost lease tried to settle changes nothing.
    pub(super) fn write(&self, script: &mut Script) -> Steps {
        let mut steps = Steps::default();
        if self.is_empty() {
            return steps;
        }
        self.write_copies(script);
        // Fresh messages: the lease shrinks or goes.
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
        // Rows: they go back to waiting, or go. A row belongs to one member, so each is asked for by its own.
        let mut done: HashMap<i64, Vec<i64>> = HashMap::new();
        let mut back = Vec::new();
        for item in &self.items {
            let Held::Row { id, member } = item.held else { continue };
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

    /// Copies of what outlives its lease, written while the lease can still be asked whether it holds.
    fn write_copies(&self, script: &mut Script) {
        let mut again = Vec::new();
        let mut dead: [Vec<_>; 2] = Default::default();
        for item in &self.items {
            match (&item.how, &item.held) {
                (How::Done, _) | (How::Again(_), Held::Row { .. }) => {}
                (How::Again(row), Held::Fresh { lease, .. }) => {
                    again.push((lease.id, lease.member, item, row))
                }
                (How::Dead(row), Held::Fresh { lease, .. }) => {
                    dead[0].push((lease.id, lease.member, item, row))
                }
                (How::Dead(row), Held::Row { id, member }) => dead[1].push((*id, *member, item, row)),
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
                    script.bind(copy.message.subject.as_str()).bind(row.reason.as_str()).bind(row.error.as_str());
                    script.bind(i64::from(row.attempts)).bind(copy.published).bind(copy.first_at).bind(now);
                    script.bind(copy.record.as_slice());
                },
            );
        }
    }

    /// Lets the next message of each key be due that may have become the first of its key.
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

    /// Confirms; to be called after the commit. Answers whether something became deliverable again.
    pub(super) fn finish(self, answers: &Answers, steps: Steps) -> bool {
        let alive = |steps: &[usize]| -> HashSet<i64> {
            steps.iter().flat_map(|step| ids(&answers[*step])).collect()
        };
        let (leases, rows) = (alive(&steps.leases), alive(&steps.rows));
        for (lease, indexes) in self.leases.values() {
            lease.settle(indexes);
        }
        let mut again = false;
        for item in self.items {
            let held = match &item.held {
                Held::Fresh { lease, .. } => leases.contains(&lease.id),
                Held::Row { id, .. } => rows.contains(id),
            };
            if matches!(item.how, How::Again(_)) || item.lane.is_some() {
                item.feed.redeliver.store(true, Ordering::Release);
                again = true;
            }
            if let Some(lane) = item.lane.filter(|lane| lane.release) {
                lane.member.release_lane(&lane.key);
            }
            if let Some(answer) = item.answer {
                let _ = answer.send(if held { Ok(()) } else { Err(lease_lost()) });
            }
        }
        again
    }

    /// Answers everybody with a failure; answers what must be tried again.
    pub(super) fn fail(mut self, error: impl Fn() -> Error) -> Vec<Settled> {
        for item in &mut self.items {
            if let Some(answer) = item.answer.take() {
                let _ = answer.send(Err(error()));
            }
        }
        self.items
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}
