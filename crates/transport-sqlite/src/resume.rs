//! Claims postponed messages of a keyed group once the earlier messages of their keys are settled.

use std::collections::HashMap;
use std::sync::Arc;

use smol_str::SmolStr;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::error::{Sql, damaged};
use super::keyed::{Due, Lanes, Turn};
use super::lease::{self, Lease};
use super::leased::{LeaseSlot, Leased, StoredMessage};
use super::member::Member;
use super::postponed::Postponed;
use super::records::Stored;
use super::schema::POSTPONED;
use super::script::Script;
use super::{activation, codec, scan};
use event_transport::error::Result;
use event_transport::subscription::Feed;
use event_transport::telemetry::count_expired;

/// Reads which keys of the group have postponed messages, unless it is known.
pub(super) async fn load(member: &Member, lanes: &Lanes) -> Result<()> {
    if lanes.lock().postponed.loaded {
        return Ok(());
    }
    let load = async {
        let mut reader = member.database.readers.acquire().await?;
        read(&mut reader, member.feed.id).await
    };
    let postponed = load.await.map_err(|error| member.database.explain(&error, "fetch"))?;
    lanes.lock().set_postponed(postponed);
    Ok(())
}

async fn read(connection: &mut SqliteConnection, group: i64) -> Sql<Postponed> {
    let rows = sqlx::query(
        "SELECT lease.id, pending FROM lease JOIN member ON member.id = lease.member \
         WHERE lease.grp = ? AND process = ? ORDER BY first, lease.id",
    )
    .bind(group)
    .bind(POSTPONED)
    .fetch_all(&mut *connection)
    .await?;
    let mut positions = Vec::new();
    for row in &rows {
        let seqs = positions_of(row.try_get(1)?)?;
        if let (Some(first), Some(last)) = (seqs.first(), seqs.last()) {
            positions.push((row.try_get(0)?, *first, last + 1, seqs.len()));
        }
    }
    // All messages of a row have one key, which its first message shows.
    let firsts: Vec<i64> = positions.iter().map(|(_, first, ..)| *first).collect();
    let found = scan::find(connection, &firsts).await?;
    let keys: HashMap<i64, SmolStr> =
        found.into_iter().filter_map(|stored| Some((stored.seq, stored.message.key.clone()?))).collect();
    let mut postponed = Postponed::default();
    postponed.loaded = true;
    for (id, first, end, count) in positions {
        if let Some(key) = keys.get(&first) {
            postponed.add(key.clone(), id, end, count);
        }
    }
    Ok(postponed)
}

fn positions_of(pending: &[u8]) -> Sql<Vec<i64>> {
    lease::decode(pending).ok_or_else(|| damaged("a lease cannot be read"))
}

/// Claims and delivers postponed messages of the keys that wait for nothing else. Returns whether there were any.
pub(super) async fn fetch(member: &Arc<Member>, lanes: &Lanes, feed: &Feed) -> Result<bool> {
    let due = lanes.lock().due(feed.free(), lanes.room);
    if due.is_empty() {
        return Ok(false);
    }
    let (group, id, keys) = (member.feed.id, member.membership.id(), due.clone());
    let job = member.database.write("fetch", move |connection| Box::pin(claim(connection, group, id, keys)));
    let claimed = match job.await {
        Ok(claimed) => claimed,
        Err(error) => {
            let mut queue = lanes.lock();
            due.iter().for_each(|due| queue.resume(&due.key));
            return Err(error);
        }
    };
    let Some(claimed) = claimed else {
        let fenced = activation::is_fenced(member).await;
        fenced.map_err(|error| member.database.explain(&error, "fetch"))?;
        lanes.lock().set_postponed(Postponed::default());
        return Ok(true);
    };
    let mut queue = lanes.lock();
    for (due, rest) in due.iter().zip(claimed.rests) {
        match rest {
            Rest::Left(count) => queue.postponed.set_left(&due.key, due.row, count),
            Rest::Blocked => queue.postponed.block(&due.key),
        }
    }
    drop(queue);
    let any = !claimed.seqs.is_empty();
    deliver(member, lanes, claimed.lease, claimed.seqs, claimed.messages);
    let mut queue = lanes.lock();
    due.iter().for_each(|due| queue.resume(&due.key));
    drop(queue);
    member.hand_over_ready(feed);
    Ok(any)
}

/// Puts claimed messages into the queue of their keys.
fn deliver(member: &Arc<Member>, lanes: &Lanes, lease: i64, seqs: Vec<i64>, messages: Vec<Stored>) {
    let (now, mut expired) = (codec::now(), 0);
    let lease = Lease::new(lease, member.membership.id(), seqs.clone());
    for stored in messages {
        let Ok(index) = seqs.binary_search(&stored.seq) else { continue };
        let held = LeaseSlot::Fresh { lease: lease.clone(), index };
        if stored.is_expired(now) {
            expired += 1;
            member.discard(held, None);
            continue;
        }
        let leased = Leased { held, message: StoredMessage::fresh(stored, now) };
        let Some(key) = leased.message.message.key.clone() else { continue };
        let turn = lanes.lock().turn(&key, leased, false, usize::MAX);
        match turn {
            Turn::Waits => {}
            Turn::File(leased) => drop(member.park(leased)),
            Turn::Go(leased) => lanes.lock().defer(leased),
        }
    }
    count_expired("sqlite", expired);
}

/// Claimed postponed messages.
struct ClaimedPostponed {
    /// The lease, and its positions in ascending order.
    lease: i64,
    seqs: Vec<i64>,
    messages: Vec<Stored>,
    /// For each key that was due, the rest of its row.
    rests: Vec<Rest>,
}

/// The state of a key's row after a claim.
enum Rest {
    /// The number of positions that are still postponed.
    Left(usize),
    /// Earlier messages of the key have rows of their own.
    Blocked,
}

/// Moves positions from the rows of `due` to a lease of the member `id`. `None` if it is not the active member.
async fn claim(
    connection: &mut SqliteConnection,
    group: i64,
    id: i64,
    due: Vec<Due>,
) -> Sql<Option<ClaimedPostponed>> {
    let mut script = Script::default();
    let active = script.statement(
        "SELECT 1 FROM consumer_group WHERE id = ? AND active = ? AND EXISTS (SELECT 1 FROM member WHERE id = ?)",
    );
    script.bind(group).bind(id).bind(id);
    let steps: Vec<_> = due
        .iter()
        .map(|due| {
            let step = script.statement(
                "SELECT pending, EXISTS (SELECT 1 FROM redelivery WHERE grp = ? AND key = ?) FROM lease WHERE id = ?",
            );
            script.bind(group).bind(due.key.as_str()).bind(due.row);
            step
        })
        .collect();
    let answers = script.run(connection).await?;
    if answers[active].is_empty() {
        return Ok(None);
    }
    let mut script = Script::default();
    let (mut seqs, mut rests) = (Vec::new(), Vec::new());
    for (due, step) in due.iter().zip(steps) {
        // The row is missing after a seek, and after a build that does not know postponed messages has returned them.
        let Some(row) = answers[step].first() else {
            rests.push(Rest::Left(0));
            continue;
        };
        if row.try_get(1)? {
            rests.push(Rest::Blocked);
            continue;
        }
        let mut taken = positions_of(row.try_get(0)?)?;
        let rest = taken.split_off(due.most.min(taken.len()));
        match rest.first() {
            None => {
                script.statement("DELETE FROM lease WHERE id = ?");
            }
            Some(first) => {
                script.statement("UPDATE lease SET first = ?, pending = ? WHERE id = ?");
                script.bind(*first).bind(lease::encode(rest.iter().copied()));
            }
        }
        script.bind(due.row);
        rests.push(Rest::Left(rest.len()));
        seqs.extend(taken);
    }
    seqs.sort_unstable();
    let Some(first) = seqs.first() else {
        return Ok(Some(ClaimedPostponed { lease: 0, seqs, messages: Vec::new(), rests }));
    };
    let leased = script
        .statement("INSERT INTO lease (grp, member, first, at, pending) VALUES (?, ?, ?, ?, ?) RETURNING id");
    script.bind(group).bind(id).bind(*first).bind(codec::now()).bind(lease::encode(seqs.iter().copied()));
    let answers = script.run(connection).await?;
    let lease = answers[leased].first().ok_or_else(|| damaged("a lease has no id"))?.try_get(0)?;
    let messages = scan::find(connection, &seqs).await?;
    Ok(Some(ClaimedPostponed { lease, seqs, messages, rests }))
}
