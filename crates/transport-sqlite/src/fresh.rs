//! Claims and delivers fresh messages: those after the group's cursor.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use smol_str::SmolStr;
use sqlx::Row;

use super::activation;
use super::claim::{Claim, Claimed, Postpone};
use super::codec;
use super::error::Sql;
use super::group::{self, reload};
use super::group_feed::Fresh;
use super::keyed::Turn;
use super::lease::{self, Lease};
use super::leased::{LeaseSlot, Leased, StoredMessage};
use super::member::Member;
use super::postponed::Postponed;
use super::records::Stored;
use super::scan::Scan;
use super::selection::Selection;
use event_transport::confirm::Confirm;
use event_transport::error::Result;
use event_transport::subscription::Feed;
use event_transport::telemetry::count_expired;

/// The highest number of non-matching messages by which the stored cursor may stay behind the scan. The limit exists
/// because the retention does not delete messages after the cursor.
const TRAIL: i64 = 4096;

/// Claims and delivers fresh messages. Returns whether there were any.
pub(super) async fn fetch(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    if member.lanes.as_ref().is_some_and(|lanes| lanes.lock().is_paused()) {
        return Ok(false);
    }
    let Some(claimed) = claim(member, feed).await? else { return Ok(false) };
    for leased in claimed {
        let Some(lanes) = &member.lanes else {
            // Fails only by a defect, because only this task takes permits. Then the lease runs out.
            let Some(slot) = feed.try_slot() else { break };
            feed.push(member.deliver(leased, slot));
            continue;
        };
        let mut queue = lanes.lock();
        match leased.message.message.key.clone() {
            None => queue.defer(leased),
            Some(key) => match queue.turn(&key, leased, false, lanes.room) {
                Turn::Waits => {}
                Turn::File(leased) => {
                    drop(queue);
                    drop(member.park(leased));
                }
                Turn::Go(leased) => queue.defer(leased),
            },
        }
    }
    member.hand_over_ready(feed);
    Ok(true)
}

/// The keys of `taken` that have messages waiting in the file.
async fn keys_in_file(member: &Member, taken: &[Stored]) -> Sql<HashSet<String>> {
    let keys: HashSet<&str> = taken.iter().filter_map(|stored| stored.message.key.as_deref()).collect();
    if keys.is_empty() {
        return Ok(Default::default());
    }
    let keys: Vec<_> = keys.into_iter().collect();
    let rows = sqlx::query(
        "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM redelivery WHERE grp = ? AND key = value)",
    )
    .bind(serde_json::to_string(&keys).unwrap_or_default())
    .bind(member.feed.id)
    .fetch_all(&member.database.readers)
    .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Selects the fresh messages that `member` claims next; `None` if it must wait for a settlement.
async fn select(member: &Member, feed: &Feed, scan: &mut Scan) -> Sql<Option<Selection>> {
    let now = codec::now();
    let Some(lanes) = &member.lanes else { return Selection::any(scan, feed.free(), now).map(Some) };
    let selected = Selection::keyed(&mut lanes.lock(), scan, feed.free(), lanes.room, now)?;
    let Some(mut selection) = selected else { return Ok(None) };
    let in_file = keys_in_file(member, &selection.taken).await?;
    selection.postpone_behind(&lanes.lock(), &in_file);
    Ok(Some(selection))
}

/// Reads the group's row if it must be read again. Returns the cursor; `None` if the group's filters or cursor were
/// changed meanwhile, so that what is known of postponed messages must be read again, too.
async fn cursor(member: &Member, fresh: &mut Fresh) -> Result<Option<i64>> {
    let database = &member.database;
    while fresh.cursor.is_none() {
        let row =
            reload(database, member.feed.id).await.map_err(|error| database.explain(&error, "fetch"))?;
        let Some((cursor, revision, filters)) = row else {
            group::restore(member).await?;
            continue;
        };
        fresh.cursor = Some(cursor);
        member.feed.note(cursor, Some((revision, &filters)));
        fresh.scan.restart(member.feed.id, cursor, filters);
        if std::mem::replace(&mut fresh.revision, revision) != revision
            && let Some(lanes) = &member.lanes
        {
            lanes.lock().set_postponed(Postponed::default());
            return Ok(None);
        }
    }
    Ok(fresh.cursor)
}

/// Leases fresh messages. `None` if there are none, or if they must wait for a settlement.
async fn claim(member: &Arc<Member>, feed: &Feed) -> Result<Option<Vec<Leased>>> {
    let database = &member.database;
    let explain = |error: sqlx::Error| database.explain(&error, "fetch");
    let mut fresh = member.feed.fresh.lock().await;
    loop {
        let Some(cursor) = cursor(member, &mut fresh).await? else { return Ok(Some(Vec::new())) };
        let more = fresh.scan.fill(&database.readers, &database.tail).await.map_err(explain)?;
        // Until a claim succeeds, an error or a lost race makes the member read the row again, and the scan begin anew
        // at the cursor: the messages that were taken from the scan are not lost.
        fresh.cursor = None;
        let Some(selection) = select(member, feed, &mut fresh.scan).await.map_err(explain)? else {
            fresh.cursor = Some(cursor);
            return Ok(None);
        };
        let to = match fresh.scan.next_position().map_err(explain)? {
            // The cursor also passes the non-matching messages before the next matching one.
            Some(next) => next - 1,
            None => fresh.scan.seen,
        };
        if selection.is_empty() && to - cursor < TRAIL {
            // If the group's filters or cursor changed, or the group was deleted, a claim would fail and show this, but
            // there was nothing to claim: the row is read again.
            if more || fresh.scan.revision == fresh.revision {
                fresh.cursor = Some(cursor);
            }
            if !more && fresh.cursor.is_some() {
                return Ok(None);
            }
            continue;
        }
        let Selection { taken, postponed, going, behind, expired } = selection;
        let (answer, claimed) = Confirm::channel();
        let id = member.membership.id();
        let pending =
            taken.first().map(|first| (first.seq, lease::encode(taken.iter().map(|stored| stored.seq))));
        let (keys, postponed) = with_rows(member, postponed);
        let ends: Vec<_> =
            postponed.iter().map(|postpone| (postpone.seqs.last().copied(), postpone.seqs.len())).collect();
        database.queue.claim(Claim {
            group: member.feed.id,
            revision: fresh.revision,
            member: id,
            from: cursor,
            to,
            pending,
            postponed,
            answer,
        });
        let (lease, rows) = match claimed.await? {
            Claimed::Moved { lease, postponed } => (lease, postponed),
            Claimed::Refused => {
                if activation::is_fenced(member).await.map_err(explain)? {
                    return Ok(None);
                }
                continue;
            }
        };
        count_expired("sqlite", expired);
        fresh.cursor = Some(to);
        member.feed.note(to, None);
        if let Some(lanes) = &member.lanes {
            let mut queue = lanes.lock();
            for ((key, row), (last, count)) in keys.into_iter().zip(rows).zip(ends) {
                queue.postponed.add(key.clone(), row, last.map_or(0, |last| last + 1), count);
                queue.resume(&key);
            }
            if behind > 0 && going == 0 {
                queue.pause(behind);
            }
        }
        let Some(lease) = lease else {
            if behind > 0 {
                return Ok(Some(Vec::new()));
            }
            continue;
        };
        let now = codec::now();
        let lease = Lease::new(lease, id, taken.iter().map(|stored| stored.seq).collect());
        let leased = |(index, stored)| Leased {
            held: LeaseSlot::Fresh { lease: lease.clone(), index },
            message: StoredMessage::fresh(stored, now),
        };
        return Ok(Some(taken.into_iter().enumerate().map(leased).collect()));
    }
}

/// The keys of postponed messages, and the rows to which their positions are added.
fn with_rows(member: &Member, postponed: HashMap<SmolStr, Vec<i64>>) -> (Vec<SmolStr>, Vec<Postpone>) {
    let Some(lanes) = &member.lanes else { return Default::default() };
    let queue = lanes.lock();
    postponed
        .into_iter()
        .map(|(key, seqs)| {
            let row = queue.postponed.last_row(&key);
            (key, Postpone { row, seqs })
        })
        .unzip()
}
