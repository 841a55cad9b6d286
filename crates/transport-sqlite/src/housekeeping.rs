//! The periodic tasks: renew leases, remove dead members, release delayed messages, and apply the retention.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, sleep};

use super::codec;
use super::database::Database;
use super::error::{Sql, lost};
use super::membership::{Members, Membership};
use super::schema::PARKED;
use super::script::Script;
use super::segment::{self, Segment};
use super::wake::POLL;
use super::{failover, rpc};
use event_transport::bounds;
use event_transport::error::Result;
use event_transport::subject::Subject;

/// The pause between two purges.
const PURGE: Duration = Duration::from_secs(30);
/// The highest number of segments that one transaction deletes, and of delayed messages that one moves: other writers
/// wait meanwhile.
const CHUNK: i64 = 256;
/// The pause between two polls for signals of other processes when this process cannot watch its file.
const DEAF: Duration = Duration::from_millis(20);

/// The state of the periodic task.
struct Housekeeping {
    database: Arc<Database>,
    members: Arc<Members>,
    /// Whether the last check found the files at their path.
    intact: bool,
    /// The version of the file at the last check: it changes with each commit of another process.
    version: Option<i64>,
}

/// Runs until the database closes.
pub(super) async fn run(database: Arc<Database>, members: Arc<Members>) {
    let mut keeper = Housekeeping { database: database.clone(), members, intact: true, version: None };
    let mut purge = Instant::now() + POLL;
    let mut look = Instant::now();
    let mut failing = false;
    loop {
        let lease = keeper.members.all().iter().map(|member| member.lease).min();
        // A quarter of the lease, so that a delay of a third of the lease does no harm and time is left for the disk.
        let tick = lease.map_or(POLL, |lease| (lease / 4).min(POLL));
        tokio::select! {
            () = sleep(tick.min(database.wake.until_delayed())) => {}
            // A member joined or a delayed message was stored: compute the wait again.
            () = database.wake.housekeeping.notified() => {}
            () = database.closing.cancelled() => return,
        }
        let result = async {
            if look.elapsed() >= tick {
                look = Instant::now();
                keeper.tick().await?;
            }
            if database.wake.until_delayed().is_zero() {
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
            sleep(Duration::from_millis(100)).await;
        } else {
            failing = false;
        }
    }
}

impl Housekeeping {
    /// Renews the leases, returns the deliveries of dead members, and wakes the other tasks if the file was changed by
    /// another process: they do not poll.
    async fn tick(&mut self) -> Result<()> {
        let database = &self.database;
        database.processes.refresh();
        let intact = database.file.intact();
        if std::mem::replace(&mut self.intact, intact.is_ok()) != intact.is_ok() {
            database.wake.groups();
        }
        intact.map_err(|gone| lost(&gone, "renew"))?;
        let members = self.members.all();
        let version = database.queue.version();
        renew(database, &members).await?;
        dead_letter(database, &members).await?;
        let version = version.await?;
        if self.version.replace(version) != Some(version) {
            database.wake.all();
        }
        Ok(())
    }
}

/// Waits for signals of the other processes and wakes the tasks of this one.
pub(super) async fn hear(database: Arc<Database>) {
    loop {
        let called = async {
            if database.processes.is_watching() {
                database.processes.called.notified().await;
            } else {
                sleep(DEAF).await;
            }
        };
        tokio::select! {
            () = called => {}
            () = database.closing.cancelled() => return,
        }
        database.processes.refresh();
        database.wake.all();
    }
}

async fn renew(database: &Database, members: &[Arc<Membership>]) -> Result<()> {
    let mut leases: HashMap<Duration, HashMap<i64, &Membership>> = HashMap::new();
    for member in members.iter().filter(|member| !member.is_lost()) {
        leases.entry(member.lease).or_default().insert(member.id(), member);
    }
    let renew = |(lease, members): (Duration, HashMap<i64, _>)| {
        (database.queue.renew(members.keys().copied().collect(), codec::now_and(lease)), members)
    };
    let renewals: Vec<_> = leases.into_iter().map(renew).collect();
    for (renewal, mut members) in renewals {
        for id in renewal.await? {
            members.remove(&id);
        }
        for member in members.values() {
            member.lose();
            database.wake.subscriptions();
        }
    }
    Ok(())
}

/// Returns to their groups the deliveries of members whose lease ran out or whose process has ended.
async fn dead_letter(database: &Arc<Database>, members: &[Arc<Membership>]) -> Result<()> {
    let mut groups: Vec<i64> = members.iter().map(|member| member.group).collect();
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
        database.wake.set_next_delayed(due);
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
    segment::insert(&mut script, Segment::pack(records), now);
    script.run(connection).await?;
    Ok(due.len())
}

/// Deletes segments that exceed the retention's age or size and that no group needs, expired dedup ids, and the rows of
/// expired calls.
async fn purge_all(database: &Arc<Database>) -> Result<()> {
    loop {
        let storage = database.storage.clone();
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
        if purged.await? < CHUNK {
            return Ok(());
        }
    }
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
