//! Operations for operators on the SQLite file: dead letters, groups and their lag, topology, seek and ping.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use smol_str::SmolStr;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};

use super::codec::{self, Reader};
use super::connection::Open;
use super::error::{Sql, damaged};
use super::filters::Filters;
use super::handle::Handle;
use super::schema::{NEVER, POSTPONED};
use super::script::{Script, json};
use super::{group, lease, scan, subscribe};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::{Group, Subject};
use event_transport::{Admin, Change, DeadLetter, DeadLetterFilter, GroupStatus, Start, Topology};

/// The number of dead letters that one query reads; the subject pattern is applied to them afterwards.
const PAGE: i64 = 256;

/// The operations for operators, of one handle.
pub(super) struct Operations {
    handle: Arc<Handle>,
}

impl Operations {
    pub(super) fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }
}

impl Admin for Operations {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        Box::pin(async move {
            let open = self.handle.live("list dead letters")?;
            read(&open, "list dead letters", |connection| Box::pin(letters(connection, filter))).await
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let open = self.handle.live("replay dead letters")?;
            let replayed = open
                .database
                .write("replay dead letters", |connection| Box::pin(replay(connection, filter)))
                .await??;
            open.database.wake_everywhere();
            Ok(replayed)
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let open = self.handle.live("drop dead letters")?;
            open.database
                .write("drop dead letters", |connection| Box::pin(drop_letters(connection, filter)))
                .await
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        Box::pin(async move {
            let open = self.handle.live("list groups")?;
            read(&open, "list groups", |connection| Box::pin(groups(connection))).await
        })
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        Box::pin(async move {
            let open = self.handle.live("plan topology")?;
            let wanted = topology.subscriptions()?;
            read(&open, "plan topology", |connection| {
                Box::pin(async move {
                    let mut changes = Vec::new();
                    for spec in &wanted {
                        changes.extend(group::compare(connection, spec).await?);
                    }
                    Ok(changes)
                })
            })
            .await
        })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        Box::pin(async move {
            let open = self.handle.live("apply topology")?;
            let mut changes = Vec::new();
            for spec in topology.subscriptions()? {
                changes.extend(subscribe::provide(&open, spec).await?);
            }
            Ok(changes)
        })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let open = self.handle.live("seek")?;
            let name = group.clone();
            let found = open.database.write("seek", move |connection| {
                Box::pin(async move {
                    let cursor = group::resolve(connection, start).await?;
                    let mut script = Script::default();
                    let known = script.statement(
                        "UPDATE consumer_group SET cursor = ?, revision = revision + 1 WHERE name = ? RETURNING id",
                    );
                    script.bind(cursor).bind(name.as_str());
                    for table in ["lease", "redelivery"] {
                        script.statement(&format!(
                            "DELETE FROM {table} WHERE grp IN (SELECT id FROM consumer_group WHERE name = ?)"
                        ));
                        script.bind(name.as_str());
                    }
                    Ok(!script.run(connection).await?[known].is_empty())
                })
            });
            found_or(found.await?, &group, "seek")?;
            forget_place(&open).await;
            Ok(())
        })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let open = self.handle.live("delete group")?;
            let name = group.clone();
            let found = open.database.write("delete group", move |connection| {
                Box::pin(async move {
                    let mut script = Script::default();
                    for table in ["lease", "redelivery", "member"] {
                        script.statement(&format!(
                            "DELETE FROM {table} WHERE grp IN (SELECT id FROM consumer_group WHERE name = ?)"
                        ));
                        script.bind(name.as_str());
                    }
                    let known = script.statement("DELETE FROM consumer_group WHERE name = ? RETURNING id");
                    script.bind(name.as_str());
                    Ok(!script.run(connection).await?[known].is_empty())
                })
            });
            found_or(found.await?, &group, "delete group")?;
            forget_place(&open).await;
            Ok(())
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async move { self.handle.live("ping")?.database.ping().await })
    }
}

fn found_or(found: bool, group: &Group, operation: &'static str) -> Result<()> {
    if found {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "the group does not exist").during(operation).with("group", group))
}

/// Makes the members in this process read their group's row again. Claims of members in other processes are refused,
/// because the row's revision has changed.
async fn forget_place(open: &Open) {
    open.groups.forget_places().await;
    open.database.wake_everywhere();
}

/// Runs `job` on one snapshot of the file.
async fn read<T>(
    open: &Open,
    operation: &'static str,
    job: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Sql<T>>,
) -> Result<T> {
    let run = async {
        let mut reader = open.database.readers.acquire().await?;
        let mut snapshot = reader.begin().await?;
        job(&mut snapshot).await
    };
    run.await.map_err(|error| open.database.explain(&error, operation))
}

const LETTER: &str =
    "SELECT id, grp, subject, reason, error, attempts, published, first_at, dead_at, data FROM dead";

/// Reads the chosen dead letters, oldest first.
async fn letters(connection: &mut SqliteConnection, filter: DeadLetterFilter) -> Sql<Vec<DeadLetter>> {
    let ids: Vec<i64> = filter.ids.iter().filter_map(|id| id.parse().ok()).collect();
    let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
    let mut letters = Vec::new();
    let mut after = 0i64;
    loop {
        let sql = format!(
            "{LETTER} WHERE id > ? AND (? OR id IN (SELECT value FROM json_each(?))) AND (? IS NULL OR grp = ?) \
             AND (? IS NULL OR reason = ?) ORDER BY id LIMIT ?"
        );
        let group = filter.group.as_ref().map(Group::as_str);
        let reason = filter.reason.map(codec::reason_word);
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after)
            .bind(filter.ids.is_empty())
            .bind(json(ids.iter().copied()))
            .bind(group)
            .bind(group)
            .bind(reason)
            .bind(reason)
            .bind(PAGE)
            .fetch_all(&mut *connection)
            .await?;
        for row in &rows {
            after = row.try_get(0)?;
            let letter = letter(row)?;
            if filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&letter.message.subject))
                && filter.reason.is_none_or(|reason| reason == letter.reason)
            {
                letters.push(letter);
                if letters.len() >= limit {
                    return Ok(letters);
                }
            }
        }
        if (rows.len() as i64) < PAGE {
            return Ok(letters);
        }
    }
}

fn letter(row: &SqliteRow) -> Sql<DeadLetter> {
    let read = || -> Option<DeadLetter> {
        let subject = Subject::new(row.try_get::<&str, _>(2).ok()?).ok()?;
        let data = Bytes::copy_from_slice(row.try_get(9).ok()?);
        let (message, _) = Reader::new(data).record(subject)?;
        let (reason, error) = codec::reason(row.try_get(3).ok()?, row.try_get(4).ok()?);
        let time = |column: usize| codec::timestamp(row.try_get(column).ok()?);
        let mut letter = DeadLetter::new(
            SmolStr::new(row.try_get::<i64, _>(0).ok()?.to_string()),
            Group::new(row.try_get::<&str, _>(1).ok()?).ok()?,
            message,
            reason,
            time(8)?,
        );
        letter.error = SmolStr::new(error);
        letter.attempts = u32::try_from(row.try_get::<i64, _>(5).ok()?).ok()?;
        letter.published_at = time(6)?;
        letter.first_attempt_at = time(7)?;
        Some(letter)
    };
    read().ok_or_else(|| damaged("a dead letter cannot be read"))
}

/// The ids of the dead letters as a JSON array.
fn chosen(letters: &[DeadLetter]) -> String {
    json(letters.iter().filter_map(|letter| letter.id.parse().ok()))
}

async fn replay(connection: &mut SqliteConnection, filter: DeadLetterFilter) -> Sql<Result<u64>> {
    let letters = letters(connection, filter).await?;
    let mut script = Script::default();
    let gone = script.statement(
        "SELECT grp FROM dead WHERE id IN (SELECT value FROM json_each(?)) AND grp NOT IN (SELECT name FROM consumer_group) LIMIT 1",
    );
    script.bind(chosen(&letters));
    if let Some(row) = script.run(connection).await?[gone].first() {
        let group: String = row.try_get(0)?;
        return Ok(Err(Error::new(
            ErrorKind::NotFound,
            "the group of the dead letter does not exist any more",
        )
        .during("replay dead letters")
        .with("group", group)));
    }
    let mut script = Script::default();
    script.statement(
        "INSERT INTO redelivery (grp, seq, key, attempts, due, subject, published, first_at, replayed, error, data) \
         SELECT g.id, d.seq, d.key, 0, 0, d.subject, d.published, NULL, 1, '', d.data \
         FROM dead AS d JOIN consumer_group AS g ON g.name = d.grp WHERE d.id IN (SELECT value FROM json_each(?)) ORDER BY d.id",
    );
    script.bind(chosen(&letters));
    script.statement("DELETE FROM dead WHERE id IN (SELECT value FROM json_each(?))");
    script.bind(chosen(&letters));
    script.run(connection).await?;
    Ok(Ok(letters.len() as u64))
}

async fn drop_letters(connection: &mut SqliteConnection, filter: DeadLetterFilter) -> Sql<u64> {
    let letters = letters(connection, filter).await?;
    let mut script = Script::default();
    script.statement("DELETE FROM dead WHERE id IN (SELECT value FROM json_each(?))");
    script.bind(chosen(&letters));
    script.run(connection).await?;
    Ok(letters.len() as u64)
}

async fn groups(connection: &mut SqliteConnection) -> Sql<Vec<GroupStatus>> {
    let mut statuses = Vec::new();
    let rows = sqlx::query(
        "SELECT id, name, filters, cursor, (SELECT count(*) FROM member WHERE grp = consumer_group.id AND process <> ?), \
         (SELECT count(*) FROM dead WHERE grp = name) FROM consumer_group ORDER BY name",
    )
    .bind(POSTPONED)
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let (id, cursor): (i64, i64) = (row.try_get(0)?, row.try_get(3)?);
        let name =
            Group::new(row.try_get::<&str, _>(1)?).map_err(|_| damaged("a group's name cannot be read"))?;
        let filters = Filters::parse(row.try_get(2)?)?;
        let mut status = GroupStatus::new(name, filters.latest().to_vec());
        status.members = count(&row, 4)?;
        status.dead = count(&row, 5)?;
        let mut oldest = None;
        let (waiting, first) = log_lag(connection, cursor, &filters).await?;
        status.waiting += waiting;
        oldest = earlier(oldest, first);
        let back = sqlx::query(
            "SELECT count(*) FILTER (WHERE member IS NULL), count(*) FILTER (WHERE member IS NOT NULL), \
             count(*) FILTER (WHERE member IS NULL AND attempts > 0), min(published) FROM redelivery WHERE grp = ?",
        )
        .bind(id)
        .fetch_one(&mut *connection)
        .await?;
        status.waiting += count(&back, 0)?;
        status.in_flight += count(&back, 1)?;
        status.retrying = count(&back, 2)?;
        oldest = earlier(oldest, back.try_get(3)?);
        let leases = sqlx::query(
            "SELECT pending, (SELECT at FROM segment WHERE last >= lease.first ORDER BY last LIMIT 1), at FROM lease WHERE grp = ?",
        )
        .bind(id)
        .fetch_all(&mut *connection)
        .await?;
        for lease in leases {
            let pending =
                lease::decode(lease.try_get(0)?).ok_or_else(|| damaged("a lease cannot be read"))?;
            let postponed = lease.try_get::<i64, _>(2)? == NEVER;
            *(if postponed { &mut status.waiting } else { &mut status.in_flight }) += pending.len() as u64;
            oldest = earlier(oldest, lease.try_get(1)?);
        }
        status.oldest_unsettled = oldest.and_then(codec::timestamp);
        statuses.push(status);
    }
    Ok(statuses)
}

/// The number of matching messages after `cursor`, and the time at which the first was stored.
async fn log_lag(
    connection: &mut SqliteConnection,
    cursor: i64,
    filters: &Filters,
) -> Sql<(u64, Option<i64>)> {
    let rows = sqlx::query("SELECT last, count, at, subjects FROM segment WHERE last > ? ORDER BY last")
        .bind(cursor)
        .fetch_all(&mut *connection)
        .await?;
    let (mut waiting, mut first) = (0, None);
    for row in rows {
        let (last, total, at): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let subjects = scan::subjects(row.try_get(3)?)?;
        let mut here: u64 = 0;
        let mut all = true;
        for (subject, count) in subjects {
            let wanted = filters.matches(&subject, last);
            all &= wanted;
            here += if wanted { count } else { 0 };
        }
        // The cursor is inside this segment: only the messages after it count.
        if last - total < cursor && here > 0 {
            here = if all {
                (last - cursor) as u64
            } else {
                scan::count_after(connection, last, cursor, filters).await?
            };
        }
        if here > 0 {
            waiting += here;
            first = earlier(first, Some(at));
        }
    }
    Ok((waiting, first))
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn count(row: &SqliteRow, column: usize) -> Sql<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}
