//! Claims and delivers fresh messages: those after the group's cursor.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::Row;

use super::activation;
use super::claim::{Claim, Claimed};
use super::codec;
use super::group::{self, reload};
use super::group_feed::Fresh;
use super::keyed::Turn;
use super::lease::{self, Lease};
use super::leased::{LeaseSlot, Leased, StoredMessage};
use super::member::Member;
use super::records::Stored;
use crate::confirm::Confirm;
use crate::error::Result;
use crate::subscription::Feed;
use crate::telemetry::count_expired;

/// The highest number of non-matching messages by which the stored cursor may stay behind the scan. The limit exists
/// because the retention does not delete messages after the cursor.
const TRAIL: i64 = 4096;

/// Claims and delivers fresh messages.
pub(super) async fn fetch(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    let want = match &member.lanes {
        None => feed.free(),
        Some(lanes) => lanes.lock().wanted(feed.free(), lanes.room),
    };
    if want == 0 {
        return Ok(false);
    }
    let claimed = claim(member, want).await?;
    if claimed.is_empty() {
        return Ok(false);
    }
    let Some(lanes) = &member.lanes else {
        for leased in claimed {
            // Fails only by a defect, because only this task takes permits. Then the lease runs out.
            let Some(slot) = feed.try_slot() else { break };
            feed.push(member.deliver(leased, slot));
        }
        return Ok(true);
    };
    let in_file =
        keys_in_file(member, &claimed).await.map_err(|error| member.database.explain(&error, "fetch"))?;
    for leased in claimed {
        let turn = match leased.message.message.key.clone() {
            None => Turn::Go(leased),
            Some(key) => lanes.lock().turn(&key, leased, in_file.contains(key.as_str()), lanes.room),
        };
        match turn {
            Turn::Waits => {}
            Turn::File(leased) => drop(member.park(leased)),
            Turn::Go(leased) => lanes.lock().defer(leased),
        }
    }
    member.hand_over_ready(feed);
    Ok(true)
}

/// The keys of `claimed` that have messages waiting in the file.
async fn keys_in_file(member: &Member, claimed: &[Leased]) -> Result<HashSet<String>, sqlx::Error> {
    let keys: HashSet<&str> =
        claimed.iter().filter_map(|leased| leased.message.message.key.as_deref()).collect();
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
async fn claim(member: &Arc<Member>, want: usize) -> Result<Vec<Leased>> {
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
        let more = fresh.scan.fill(&database.readers, &database.tail).await.map_err(explain)?;
        let now = codec::now();
        // Until a claim succeeds, an error or a lost race makes the member read the row again, and the scan begin anew
        // at the cursor: the messages that were taken from the scan are not lost.
        fresh.cursor = None;
        let mut taken: Vec<Stored> = Vec::new();
        let mut expired = 0;
        while taken.len() < want
            && let Some(stored) = fresh.scan.take().map_err(explain)?
        {
            if stored.is_expired(now) { expired += 1 } else { taken.push(stored) }
        }
        let to = match fresh.scan.next_position().map_err(explain)? {
            // The cursor also passes the non-matching messages before the next matching one.
            Some(next) => next - 1,
            None => fresh.scan.seen,
        };
        if taken.is_empty() && expired == 0 && to - cursor < TRAIL {
            // If the group's filters or cursor changed, or the group was deleted, a claim would fail and show this, but
            // there was nothing to claim: the row is read again.
            if more || fresh.scan.revision == fresh.revision {
                fresh.cursor = Some(cursor);
            }
            if !more && fresh.cursor.is_some() {
                return Ok(Vec::new());
            }
            continue;
        }
        let (answer, claimed) = Confirm::channel();
        let id = member.membership.id();
        let pending =
            taken.first().map(|first| (first.seq, lease::encode(taken.iter().map(|stored| stored.seq))));
        database.queue.claim(Claim {
            group: member.feed.id,
            revision: fresh.revision,
            member: id,
            from: cursor,
            to,
            pending,
            answer,
        });
        match claimed.await? {
            Claimed::Refused => {
                if activation::is_fenced(member).await.map_err(explain)? {
                    return Ok(Vec::new());
                }
            }
            Claimed::Moved => {
                count_expired("sqlite", expired);
                keep(member, &mut fresh, to);
            }
            Claimed::Lease(lease) => {
                count_expired("sqlite", expired);
                keep(member, &mut fresh, to);
                let lease = Lease::new(lease, id, taken.iter().map(|stored| stored.seq).collect());
                let message = |stored: Stored| StoredMessage {
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
                    .map(|(index, stored)| Leased {
                        held: LeaseSlot::Fresh { lease: lease.clone(), index },
                        message: message(stored),
                    })
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
