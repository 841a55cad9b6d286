//! Claims and delivers due redeliveries, which have rows of their own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::codec::{self, Reader};
use super::error::{Sql, damaged};
use super::leased::{LeaseSlot, Leased, StoredMessage};
use super::member::Member;
use super::records::is_expired;
use super::schema::PARKED;
use super::script::json;
use event_transport::error::Result;
use event_transport::subject::Subject;
use event_transport::subscription::Feed;
use event_transport::telemetry::count_expired;

/// The highest number of redelivery rows of a keyed group that one query reads.
const CANDIDATES: i64 = 256;

/// Claims and delivers due redeliveries.
pub(super) async fn fetch(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    let database = &member.database;
    let explain = |error: sqlx::Error| database.explain(&error, "fetch");
    let (group, now, id) = (member.feed.id, codec::now(), member.membership.id());
    let free = feed.free();
    let room = member.lanes.as_ref().map_or(0, |lanes| lanes.lock().room(lanes.room));
    let due = match &member.lanes {
        None => first_due(member).await.map_err(explain)?.map(|due| (due, None)),
        Some(lanes) => {
            let heads = heads(member, now).await.map_err(explain)?;
            let first = heads.iter().map(|(due, ..)| *due).min();
            let lanes = lanes.lock();
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
        // The other members must not sleep for longer.
        if due < member.feed.next_due.swap(due, Ordering::AcqRel) {
            database.wake.subscriptions();
        }
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
    member.feed.look_for_redeliveries();
    let mut claimed = rows.iter().map(read_row).collect::<Sql<Vec<_>>>().map_err(explain)?;
    claimed.sort_by_key(|(id, entry)| (entry.seq, *id));
    let any = !claimed.is_empty();
    if claimed.len() >= free {
        // The rest is for the other members, if there are any.
        database.wake.subscriptions();
    }
    let expired = claimed.extract_if(.., |(_, entry)| !entry.replayed && is_expired(&entry.message, now));
    let expired: Vec<_> = expired.map(|(id, entry)| (id, entry.message.key.clone())).collect();
    count_expired("sqlite", expired.len() as u64);
    for (row, message) in claimed {
        let key = message.message.key.clone();
        let leased = Leased { held: LeaseSlot::Row { id: row, member: id }, message };
        if let (Some(lanes), Some(key)) = (&member.lanes, key) {
            lanes.lock().take_row(&key, leased);
            continue;
        }
        match feed.try_slot() {
            Some(slot) => feed.push(member.deliver(leased, slot)),
            // Cannot happen, because only this task takes permits. If it did, the lease would run out.
            None => tracing::error!("a message was fetched without a permit; its lease will expire"),
        }
    }
    member.hand_over_ready(feed);
    for (row, key) in expired {
        member.discard(LeaseSlot::Row { id: row, member: id }, key);
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
