//! The periodic tasks: renew leases, remove dead members, release delayed messages, and apply the retention.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, timeout};

use super::codec;
use super::connection::{Database, Script};
use super::error::{Sql, lost};
use super::member::Member;
use super::publish::{self, Segment};
use super::schema::PARKED;
use super::subscribe::POLL;
use super::{failover, rpc};
use crate::bounds;
use crate::error::Result;
use crate::subject::Subject;

/// The pause between two purges.
const PURGE: Duration = Duration::from_secs(30);
/// The highest number of segments that one transaction deletes, and of delayed messages that one moves: other writers
/// wait meanwhile.
const CHUNK: i64 = 256;
/// The pause between two polls for signals of other processes when this process cannot watch its file.
const DEAF: Duration = Duration::from_millis(20);

/// Runs until the database closes.
pub(super) async fn run(database: Arc<Database>) {
    let mut purge = Instant::now() + POLL;
    let mut look = Instant::now();
    let mut failing = false;
    loop {
        let members = members(&database);
        let lease = members.iter().map(|member| member.lease).min();
        // A quarter of the lease, so that a delay of a third of the lease does no harm and time is left for the disk.
        let tick = lease.map_or(POLL, |lease| (lease / 4).min(POLL));
        let now = codec::now();
        let delayed = database.next_delayed.load(Ordering::Acquire).saturating_sub(now).max(0);
        tokio::select! {
            () = tokio::time::sleep(tick.min(Duration::from_nanos(delayed as u64))) => {}
            // A member joined or a delayed message was stored: compute the wait again.
            () = database.keeper.notified() => {}
            () = database.closing.cancelled() => return,
        }
        let result = async {
            if look.elapsed() >= tick {
                look = Instant::now();
                database.intact().map_err(|gone| lost(&gone, "renew"))?;
                renew(&database, &members).await?;
                dead_letter(&database, &members).await?;
                database.wake_all_here();
            }
            if database.next_delayed.load(Ordering::Acquire) <= codec::now() {
                release_delayed(&database).await?;
            }
            if Instant::now() >= purge {
                purge = Instant::now() + PURGE;
                purge_all(&database).await?;
            }
            Ok(())
        };
        let result: Result<()> = result.await;
        if let Err(error) = result {
            if database.closing.is_cancelled() {
                return;
            }
            if !failing {
                tracing::warn!(%error, "the bus cannot renew leases or release delayed messages; retrying");
            }
            failing = true;
            tokio::time::sleep(Duration::from_millis(100)).await;
        } else {
            failing = false;
        }
    }
}

/// Waits for signals of the other processes and wakes the tasks of this one.
pub(super) async fn hear(database: Arc<Database>) {
    let wait = if database.processes.is_watching() { POLL } else { DEAF };
    loop {
        tokio::select! {
            _ = timeout(wait, database.processes.called.notified()) => {}
            () = database.closing.cancelled() => return,
        }
        database.processes.refresh();
        database.next_delayed.store(0, Ordering::Release);
        database.keeper.notify_one();
        database.wake_all_here();
        database.calls.called.notify_one();
    }
}

fn members(database: &Database) -> Vec<Arc<Member>> {
    let mut members = database.members.lock().expect("not poisoned");
    members.retain(|_, member| member.strong_count() > 0);
    members.values().filter_map(Weak::upgrade).collect()
}

async fn renew(database: &Arc<Database>, members: &[Arc<Member>]) -> Result<()> {
    let mut renewals = Vec::new();
    for member in members.iter().filter(|member| !member.lost.load(Ordering::Acquire)) {
        let id = member.id.load(Ordering::Acquire);
        let until = codec::now_and(member.lease);
        renewals.push((member, database.inbox.renew(vec![id], until)));
    }
    for (member, renewal) in renewals {
        if renewal.await?.is_empty() {
            member.lost.store(true, Ordering::Release);
            member.active.store(false, Ordering::Release);
        }
    }
    Ok(())
}

/// Returns to their groups the deliveries of members whose lease ran out or whose process has ended.
async fn dead_letter(database: &Arc<Database>, members: &[Arc<Member>]) -> Result<()> {
    let mut groups: Vec<i64> = members.iter().map(|member| member.feed.id).collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.is_empty() {
        return Ok(());
    }
    let seen = async {
        let mut reader = database.readers.acquire().await?;
        failover::members(&mut reader, &groups).await
    };
    let seen = seen.await.map_err(|error| database.explain(&error, "renew"))?;
    failover::dead_letter(database, &seen).await
}

/// Moves the delayed messages that are due to the log.
async fn release_delayed(database: &Arc<Database>) -> Result<()> {
    let waiting = sqlx::query("SELECT ifnull(min(due), ?) FROM delayed").bind(PARKED);
    let due: i64 = waiting
        .fetch_one(&database.readers)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| database.explain(&error, "deliver delayed"))?;
    if due > codec::now() {
        database.next_delayed.store(due, Ordering::Release);
        return Ok(());
    }
    let moved = database.write("deliver delayed", |connection| Box::pin(move_delayed(connection)));
    if moved.await? > 0 {
        database.wake_everywhere();
    }
    Ok(())
}

async fn move_delayed(connection: &mut SqliteConnection) -> Sql<usize> {
    let now = codec::now();
    let rows = sqlx::query("DELETE FROM delayed WHERE id IN (SELECT id FROM delayed WHERE due <= ? ORDER BY due, id LIMIT ?) RETURNING id, due, subject, data")
        .bind(now)
        .bind(CHUNK)
        .fetch_all(&mut *connection)
        .await?;
    let mut due = Vec::new();
    for row in &rows {
        let subject = Subject::new(row.try_get::<&str, _>(2)?)
            .map_err(|_| super::error::damaged("a delayed message's subject cannot be read"))?;
        due.push((
            row.try_get::<i64, _>(1)?,
            row.try_get::<i64, _>(0)?,
            subject,
            row.try_get::<Vec<u8>, _>(3)?,
        ));
    }
    due.sort_by_key(|(due, id, ..)| (*due, *id));
    let records = due.iter().map(|(_, _, subject, record)| (0, subject, record.as_slice()));
    let mut script = Script::default();
    publish::insert(&mut script, Segment::pack(records), now);
    script.run(connection).await?;
    Ok(due.len())
}

/// Deletes segments that exceed the retention's age or size and that no group needs, expired dedup ids, and the rows of
/// expired calls.
async fn purge_all(database: &Arc<Database>) -> Result<()> {
    if !database.begin_purge() {
        return Ok(());
    }
    let storage = database.storage.clone();
    let result = async {
        loop {
            let storage = storage.clone();
            let purged = database.write("purge", move |connection| {
                Box::pin(async move {
                    let now = codec::now();
                    let window = bounds::signed_nanos(storage.dedup_window);
                    let age = bounds::signed_nanos(storage.retention_age);
                    let mut script = Script::default();
                    script.statement("DELETE FROM dedup WHERE id IN (SELECT id FROM dedup WHERE at <= ? LIMIT 10000)");
                    script.bind(now.saturating_sub(window));
                    rpc::purge(&mut script, now);
                    let size = script.statement(
                        "SELECT (SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count), \
                         (SELECT page_size FROM pragma_page_size)",
                    );
                    let answers = script.run(connection).await?;
                    let row = answers[size].first().ok_or_else(|| super::error::damaged("the file has no size"))?;
                    let bytes = row.try_get::<i64, _>(0)?.saturating_mul(row.try_get(1)?);
                    let too_large = u64::try_from(bytes).unwrap_or(0) > storage.retention_bytes;
                    purge_segments(connection, now.saturating_sub(age), too_large).await
                })
            });
            match purged.await? {
                rows if rows < CHUNK => return Ok(()),
                _ => {}
            }
        }
    };
    let result = result.await;
    database.end_purge();
    result
}

/// Deletes the oldest segments that no group needs and that are older than `before`, or of any age when the file is too
/// large. Returns the number of deleted segments.
async fn purge_segments(connection: &mut SqliteConnection, before: i64, too_large: bool) -> Sql<i64> {
    // The newest row stays: the next position is computed from it.
    let rows = sqlx::query(
        "DELETE FROM segment WHERE last IN (SELECT last FROM segment WHERE last < (SELECT max(last) FROM segment) \
         AND last <= (SELECT ifnull(min(cursor), 9223372036854775807) FROM consumer_group) \
         AND last < (SELECT ifnull(min(first), 9223372036854775807) FROM lease) \
         AND (? OR at < ?) ORDER BY last LIMIT ?)",
    )
    .bind(too_large)
    .bind(before)
    .bind(CHUNK)
    .execute(connection)
    .await?;
    Ok(rows.rows_affected() as i64)
}
