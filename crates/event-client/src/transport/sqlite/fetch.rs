//! One round of fetching for a member: first due redeliveries, then fresh messages, up to its free permits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::claim::{Claim, Claimed, Fresh};
use super::codec::{self, Reader};
use super::connection::json;
use super::error::{Sql, damaged};
use super::failover;
use super::group::{self, reload};
use super::keyed::{KeyQueue, Parked, Turn};
use super::lease::{self, Lease};
use super::member::{LeaseSlot, Member, StoredMessage};
use super::scan::{Stored, is_expired};
use super::schema::PARKED;
use crate::confirm::Confirm;
use crate::error::Result;
use crate::subject::Subject;
use crate::subscription::Feed;

/// The highest number of non-matching messages by which the stored cursor may stay behind the scan. The limit exists
/// because the retention does not delete messages after the cursor.
const TRAIL: i64 = 4096;
/// The highest number of redelivery rows of a keyed group that one query reads.
const CANDIDATES: i64 = 256;

/// Fetches and delivers messages. Returns whether there were any.
pub(super) async fn fetch(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    if member.lanes.is_some() && !failover::activate(member).await? {
        return Ok(false);
    }
    let mut fetched = hand_over_ready(member, feed);
    let group = &member.feed;
    if group.redeliver.swap(false, Ordering::AcqRel) || group.next_due.load(Ordering::Acquire) <= codec::now()
    {
        match redeliveries(member, feed).await {
            Ok(any) => fetched |= any,
            Err(error) => {
                group.redeliver.store(true, Ordering::Release);
                return Err(error);
            }
        }
    }
    if feed.free() > 0 {
        fetched |= fresh(member, feed).await?;
    }
    Ok(fetched)
}

/// Delivers messages that waited in memory for their key and may be delivered now.
fn hand_over_ready(member: &Arc<Member>, feed: &Feed) -> bool {
    let Some(lanes) = &member.lanes else { return false };
    let mut any = false;
    while lanes.lock().expect("not poisoned").has_ready() {
        let Some(slot) = feed.try_slot() else { break };
        let Some(parked) = lanes.lock().expect("not poisoned").ready() else { break };
        feed.push(member.deliver(parked.held, parked.entry, slot));
        any = true;
    }
    any
}

/// Claims and delivers due redeliveries.
async fn redeliveries(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    let database = &member.database;
    let explain = |error: sqlx::Error| database.explain(&error, "fetch");
    let (group, now, id) = (member.feed.id, codec::now(), member.id.load(Ordering::Acquire));
    let free = feed.free();
    let room = member.lanes.as_ref().map_or(0, |lanes| lanes.lock().expect("not poisoned").room(member.room));
    let due = match &member.lanes {
        None => first_due(member).await.map_err(explain)?.map(|due| (due, None)),
        Some(lanes) => {
            let heads = heads(member, now).await.map_err(explain)?;
            let first = heads.iter().map(|(due, ..)| *due).min();
            let lanes = lanes.lock().expect("not poisoned");
            let ids: Vec<i64> = heads
                .into_iter()
                .filter(|(due, _, key)| *due <= now && !key.as_ref().is_some_and(|key| lanes.is_busy(key)))
                .take(free)
                .map(|(_, id, _)| id)
                .collect();
            drop(lanes);
            // If all due messages have busy keys, no timer is needed: the settlement that frees a key sets `redeliver`.
            first.map(|due| if due <= now && ids.is_empty() { (PARKED, None) } else { (due, Some(ids)) })
        }
    };
    let (due, chosen) = due.unwrap_or((PARKED, None));
    if due > now {
        member.feed.next_due.store(due, Ordering::Release);
        return Ok(false);
    }
    let rows = database
        .write("fetch", move |connection| {
            Box::pin(async move {
                // The first message of each key and some that follow it, up to the first one that is not due yet.
                const FOLLOW: &str = "(SELECT f.id FROM json_each(?) AS h JOIN redelivery AS first ON first.id = h.value \
                    JOIN redelivery AS f ON f.id = first.id OR f.id IN (SELECT id FROM redelivery WHERE grp = first.grp AND key = first.key \
                    AND member IS NULL ORDER BY seq, id LIMIT ?) WHERE NOT EXISTS (SELECT 1 FROM redelivery AS w WHERE w.grp = f.grp \
                    AND w.key = f.key AND (w.seq, w.id) <= (f.seq, f.id) AND w.due > ? AND w.due < ?))";
                const CLAIM: &str = "UPDATE redelivery SET member = ?, attempts = attempts + 1, first_at = ifnull(first_at, ?) \
                    WHERE member IS NULL AND EXISTS (SELECT 1 FROM member WHERE id = ?) AND id IN ";
                const ANSWER: &str = " RETURNING id, seq, attempts, subject, published, first_at, replayed, data";
                let sql = match chosen {
                    None => format!(
                        "{CLAIM} (SELECT id FROM redelivery WHERE grp = ? AND member IS NULL AND due <= ? ORDER BY due LIMIT ?) {ANSWER}"
                    ),
                    Some(_) => format!("{CLAIM} {FOLLOW} {ANSWER}"),
                };
                let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(now).bind(id);
                let query = match chosen {
                    None => query.bind(group).bind(now).bind(free as i64),
                    Some(ids) => {
                        let each = (room / ids.len().max(1)).max(1) as i64;
                        query.bind(json(ids)).bind(each).bind(now).bind(PARKED)
                    }
                };
                query.fetch_all(connection).await
            })
        })
        .await?;
    // More messages may be due than were claimed, and the next due time is not known yet.
    member.feed.redeliver.store(true, Ordering::Release);
    let mut claimed = rows.iter().map(read_row).collect::<Sql<Vec<_>>>().map_err(explain)?;
    claimed.sort_by_key(|(id, entry)| (entry.seq, *id));
    let any = !claimed.is_empty();
    let expired = claimed.extract_if(.., |(_, entry)| !entry.replayed && is_expired(&entry.message, now));
    let expired: Vec<_> = expired.map(|(id, entry)| (id, entry.message.key.clone())).collect();
    if !expired.is_empty() {
        metrics::counter!("event_client_expired_total").increment(expired.len() as u64);
    }
    for (row, entry) in claimed {
        let held = LeaseSlot::Row { id: row, member: id };
        if let (Some(lanes), Some(key)) = (&member.lanes, entry.message.key.clone()) {
            lanes.lock().expect("not poisoned").take_row(&key, Parked { held, entry });
            continue;
        }
        match feed.try_slot() {
            Some(slot) => feed.push(member.deliver(held, entry, slot)),
            // Cannot happen, because only this task takes permits. If it did, the lease would run out.
            None => tracing::error!("a message was fetched without a permit; its lease will expire"),
        }
    }
    hand_over_ready(member, feed);
    for (row, key) in expired {
        member.discard_row(row, id, key);
    }
    Ok(any)
}

async fn first_due(member: &Member) -> Sql<Option<i64>> {
    sqlx::query("SELECT min(due) FROM redelivery WHERE grp = ? AND member IS NULL")
        .bind(member.feed.id)
        .fetch_one(&member.database.readers)
        .await?
        .try_get(0)
}

/// The first waiting message of each key: due time, row id and key.
async fn heads(member: &Member, now: i64) -> Sql<Vec<(i64, i64, Option<String>)>> {
    let rows = sqlx::query(
        "SELECT due, id, key FROM redelivery AS r WHERE grp = ? AND member IS NULL AND due < ? AND (key IS NULL OR NOT EXISTS \
         (SELECT 1 FROM redelivery AS e WHERE e.grp = r.grp AND e.key = r.key AND ((e.seq, e.id) < (r.seq, r.id) OR e.member IS NOT NULL))) \
         ORDER BY due > ?, due, seq LIMIT ?",
    )
    .bind(member.feed.id)
    .bind(PARKED)
    .bind(now)
    .bind(CANDIDATES)
    .fetch_all(&member.database.readers)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

fn read_row(row: &SqliteRow) -> Sql<(i64, StoredMessage)> {
    let subject: &str = row.try_get(3)?;
    let data = Bytes::copy_from_slice(row.try_get(7)?);
    let (message, _) = Subject::new(subject)
        .ok()
        .and_then(|subject| Reader::new(data).record(subject))
        .ok_or_else(|| damaged("a message to redeliver cannot be read"))?;
    let entry = StoredMessage {
        message: Arc::new(message),
        seq: row.try_get(1)?,
        attempt: u32::try_from(row.try_get::<i64, _>(2)?).unwrap_or(u32::MAX),
        published: row.try_get(4)?,
        first_at: row.try_get(5)?,
        replayed: row.try_get(6)?,
    };
    Ok((row.try_get(0)?, entry))
}

/// Claims and delivers fresh messages.
async fn fresh(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    let want = match &member.lanes {
        None => feed.free(),
        Some(lanes) => lanes.lock().expect("not poisoned").wanted(feed.free(), member.room),
    };
    if want == 0 {
        return Ok(false);
    }
    let claimed = claim(member, want).await?;
    if claimed.is_empty() {
        return Ok(false);
    }
    let Some(lanes) = &member.lanes else {
        for (lease, index, entry) in claimed {
            // Fails only by a defect, because only this task takes permits. Then the lease runs out.
            let Some(slot) = feed.try_slot() else { break };
            feed.push(member.deliver(LeaseSlot::Fresh { lease, index }, entry, slot));
        }
        return Ok(true);
    };
    let in_file =
        keys_in_file(member, &claimed).await.map_err(|error| member.database.explain(&error, "fetch"))?;
    for (lease, index, entry) in claimed {
        let parked = Parked { held: LeaseSlot::Fresh { lease, index }, entry };
        let turn = match parked.entry.message.key.clone() {
            None => Turn::Go(parked),
            Some(key) => {
                let mut lanes: std::sync::MutexGuard<'_, KeyQueue> = lanes.lock().expect("not poisoned");
                lanes.turn(&key, parked, in_file.contains(key.as_str()), member.room)
            }
        };
        match turn {
            Turn::Waits => {}
            Turn::File(parked) => drop(member.park(parked)),
            Turn::Go(parked) => lanes.lock().expect("not poisoned").defer(parked),
        }
    }
    hand_over_ready(member, feed);
    Ok(true)
}

type Taken = Vec<(Arc<Lease>, usize, StoredMessage)>;

/// The keys of `claimed` that have messages waiting in the file.
async fn keys_in_file(
    member: &Member,
    claimed: &Taken,
) -> Result<std::collections::HashSet<String>, sqlx::Error> {
    let keys: std::collections::HashSet<&str> =
        claimed.iter().filter_map(|(_, _, entry)| entry.message.key.as_deref()).collect();
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

/// Leases up to `want` fresh messages.
async fn claim(member: &Arc<Member>, want: usize) -> Result<Taken> {
    let database = &member.database;
    let explain = |error: sqlx::Error| database.explain(&error, "fetch");
    let mut fresh = member.feed.fresh.lock().await;
    loop {
        let cursor = match fresh.cursor {
            Some(cursor) => cursor,
            None => {
                let Some(row) = reload(database, member.feed.id).await.map_err(explain)? else {
                    group::restore(member).await?;
                    continue;
                };
                let (cursor, revision, filters) = row;
                fresh.revision = revision;
                fresh.cursor = Some(cursor);
                member.feed.note(cursor, Some((revision, &filters)));
                fresh.scan.restart(member.feed.id, cursor, filters);
                cursor
            }
        };
        let more = fresh.scan.fill(database).await.map_err(explain)?;
        let now = codec::now();
        let mut taken: Vec<Stored> = Vec::new();
        let mut expired = 0;
        while taken.len() < want
            && let Some(stored) = fresh.scan.buffer.pop_front()
        {
            if stored.is_expired(now) { expired += 1 } else { taken.push(stored) }
        }
        let to = match fresh.scan.buffer.front() {
            // The cursor also passes the non-matching messages before the next matching one.
            Some(next) => next.seq - 1,
            None => fresh.scan.seen,
        };
        if taken.is_empty() && expired == 0 && to - cursor < TRAIL {
            if more {
                continue;
            }
            if fresh.scan.revision == fresh.revision {
                return Ok(Taken::new());
            }
            // The group's filters or cursor changed, or the group was deleted. A claim would fail and show this, but
            // there was nothing to claim: read the row again.
            fresh.cursor = None;
            continue;
        }
        let (answer, claimed) = Confirm::channel();
        let id = member.id.load(Ordering::Acquire);
        let pending =
            taken.first().map(|first| (first.seq, lease::encode(taken.iter().map(|stored| stored.seq))));
        database.inbox.claim(Claim {
            group: member.feed.id,
            revision: fresh.revision,
            member: id,
            from: cursor,
            to,
            pending,
            answer,
        });
        // Unless the claim succeeds, the row must be read again, also when this future is dropped while it waits.
        fresh.cursor = None;
        match claimed.await? {
            Claimed::Refused => {
                if member.is_fenced().await.map_err(explain)? {
                    return Ok(Taken::new());
                }
            }
            Claimed::Moved => {
                metrics::counter!("event_client_expired_total").increment(expired);
                keep(member, &mut fresh, to);
            }
            Claimed::Lease(lease) => {
                metrics::counter!("event_client_expired_total").increment(expired);
                keep(member, &mut fresh, to);
                let lease = Lease::new(lease, id, taken.iter().map(|stored| stored.seq).collect());
                let entry = |stored: Stored| StoredMessage {
                    message: stored.message,
                    seq: stored.seq,
                    attempt: 1,
                    published: stored.published,
                    first_at: now,
                    replayed: false,
                };
                return Ok(taken
                    .into_iter()
                    .enumerate()
                    .map(|(index, stored)| (lease.clone(), index, entry(stored)))
                    .collect());
            }
        }
    }
}

/// Remembers the cursor after a successful claim.
fn keep(member: &Member, fresh: &mut Fresh, to: i64) {
    fresh.cursor = Some(to);
    member.feed.note(to, None);
}
