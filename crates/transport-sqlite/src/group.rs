//! A consumer group's row in the file: creates, compares, reads and restores it.

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::codec;
use super::database::Database;
use super::error::Sql;
use super::failover::{self, Seen};
use super::filters::Filters;
use super::member::Member;
use super::schema::{PARKED, POSTPONED};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Position;
use event_transport::subject::Group;
use event_transport::topology::compare_group;
use event_transport::{Change, Mode, Provision, Start, Subscribe};

/// The result of [`ensure_group`].
pub(super) enum Ensured {
    /// The group's row exists as required.
    Group(i64),
    /// The subscription's `keyed` setting differs, and these members of the group may be alive.
    Others(Vec<Seen>),
    /// `provision` does not allow creating or changing the group.
    Refused(Error),
}

/// The columns of a group's row that a subscription compares or changes.
struct GroupRow {
    id: i64,
    filters: Filters,
    keyed: bool,
    cursor: i64,
}

async fn find(connection: &mut SqliteConnection, name: &str) -> Sql<Option<GroupRow>> {
    let row = sqlx::query("SELECT id, filters, keyed, cursor FROM consumer_group WHERE name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let filters = Filters::parse(row.try_get(1)?)?;
    Ok(Some(GroupRow { id: row.try_get(0)?, filters, keyed: row.try_get(2)?, cursor: row.try_get(3)? }))
}

/// Compares the group of `spec` with `spec`; `None` when nothing differs.
pub(super) async fn compare(connection: &mut SqliteConnection, spec: &Subscribe) -> Sql<Option<Change>> {
    let Mode::Group(name) = &spec.mode else { return Ok(None) };
    let found = find(connection, name.as_str()).await?;
    Ok(compare_group(spec, found.as_ref().map(|row| (row.filters.latest(), row.keyed))))
}

/// Creates or changes the group's row as `spec` requires, if `provision` allows it.
pub(super) async fn ensure_group(
    connection: &mut SqliteConnection,
    spec: &Subscribe,
    provision: Provision,
) -> Sql<Ensured> {
    let Mode::Group(name) = &spec.mode else { unreachable!("only groups have rows") };
    let (patterns, keyed) = (&spec.filters, spec.keyed);
    let found = find(connection, name.as_str()).await?;
    let change = compare_group(spec, found.as_ref().map(|row| (row.filters.latest(), row.keyed)));
    let follows = match provision.group(change.as_ref()) {
        Ok(follows) => follows,
        Err(refusal) => return Ok(Ensured::Refused(refusal)),
    };
    let Some(GroupRow { id, mut filters, keyed: was_keyed, cursor }) = found else {
        let cursor = resolve(connection, spec.start).await?;
        let row = sqlx::query(
            "INSERT INTO consumer_group (name, filters, cursor, revision, keyed) VALUES (?, ?, ?, 1, ?) RETURNING id",
        )
        .bind(name.as_str())
        .bind(Filters::new(patterns.clone()).to_text())
        .bind(cursor)
        .bind(keyed)
        .fetch_one(&mut *connection)
        .await?;
        return Ok(Ensured::Group(row.try_get(0)?));
    };
    if !follows {
        return Ok(Ensured::Group(id));
    }
    if was_keyed != keyed {
        let others = failover::members(connection, &[id]).await?;
        if !others.is_empty() {
            return Ok(Ensured::Others(others));
        }
        let postponed = sqlx::query("SELECT id FROM member WHERE grp = ? AND process = ?")
            .bind(id)
            .bind(POSTPONED)
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = postponed {
            failover::reap(connection, row.try_get(0)?).await?;
        }
        // Messages that waited for an earlier one of their key need not wait any more; a keyed member checks the order
        // itself.
        sqlx::query("UPDATE redelivery SET due = 0 WHERE grp = ? AND due = ?")
            .bind(id)
            .bind(PARKED)
            .execute(&mut *connection)
            .await?;
    }
    if filters.latest() != patterns {
        let end = resolve(connection, Start::New).await?;
        filters.change(patterns.clone(), end, cursor);
    }
    sqlx::query(
        "UPDATE consumer_group SET filters = ?, keyed = ?, active = NULL, revision = revision + 1 WHERE id = ?",
    )
    .bind(filters.to_text())
    .bind(keyed)
    .bind(id)
    .execute(&mut *connection)
    .await?;
    Ok(Ensured::Group(id))
}

/// The error for a subscription whose `keyed` setting differs from that of the group's live members.
pub(super) fn disagree(group: &Group, keyed: bool) -> Error {
    let (they, we) = if keyed { ("not keyed", "keyed") } else { ("keyed", "not keyed") };
    let text =
        format!("the group's live members are {they}, this subscription is {we}; use the same setting");
    Error::new(ErrorKind::Config, text).with("group", group)
}

/// Inserts a row for a new member of the group and returns its id.
pub(super) async fn join(
    connection: &mut SqliteConnection,
    group: i64,
    process: &str,
    until: i64,
) -> Sql<i64> {
    sqlx::query("INSERT INTO member (grp, process, until) VALUES (?, ?, ?) RETURNING id")
        .bind(group)
        .bind(process)
        .bind(until)
        .fetch_one(connection)
        .await?
        .try_get(0)
}

/// The position after which a subscription with `start` begins.
pub(super) async fn resolve(connection: &mut SqliteConnection, start: Start) -> Sql<i64> {
    let end = async |connection: &mut SqliteConnection| -> Sql<i64> {
        sqlx::query("SELECT ifnull(max(last), 0) FROM segment").fetch_one(connection).await?.try_get(0)
    };
    match start {
        Start::New => end(connection).await,
        Start::Earliest => Ok(0),
        Start::Position(Position(position)) => {
            let wanted = i64::try_from(position).unwrap_or(i64::MAX).saturating_sub(1).max(0);
            // A position beyond the end of the log counts as the end: otherwise the next messages would be skipped.
            Ok(wanted.min(end(connection).await?))
        }
        Start::Time(time) => {
            let row = sqlx::query("SELECT last - count FROM segment WHERE at >= ? ORDER BY last LIMIT 1")
                .bind(codec::nanos(time))
                .fetch_optional(&mut *connection)
                .await?;
            match row {
                Some(row) => row.try_get(0),
                None => end(connection).await,
            }
        }
    }
}

/// Reads cursor, revision and filters of a group's row.
pub(super) async fn reload(database: &Database, group: i64) -> Sql<Option<(i64, i64, Filters)>> {
    let row = sqlx::query("SELECT cursor, revision, filters FROM consumer_group WHERE id = ?")
        .bind(group)
        .fetch_optional(&database.readers)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let filters = Filters::parse(row.try_get(2)?)?;
    Ok(Some((row.try_get(0)?, row.try_get(1)?, filters)))
}

pub(super) fn group_gone(member: &Member) -> Error {
    Error::new(ErrorKind::NotFound, "the group does not exist any more")
        .during("fetch")
        .with("group", &member.feed.name)
}

/// Creates a group's row again that another program removed, at the last cursor that this member knows.
///
/// Deleting a group through the library also deletes the rows of its members. A member whose own row is missing
/// therefore returns that the group does not exist any more.
pub(super) async fn restore(member: &Member) -> Result<()> {
    let (id, me) = (member.feed.id, member.membership.id());
    let name = member.feed.name.to_string();
    let known = member.feed.known();
    let filters = known.filters.unwrap_or_else(|| Filters::new(member.terms.filters.clone())).to_text();
    let keyed = member.lanes.is_some();
    let creates = member.terms.provision.creates();
    let job = member.database.write("fetch", move |connection| {
        Box::pin(async move {
            let found = sqlx::query("SELECT 1 FROM member WHERE id = ?").bind(me).fetch_optional(&mut *connection);
            if found.await?.is_none() {
                return Ok(Restored::Deleted);
            }
            if !creates {
                return Ok(Restored::Refused);
            }
            sqlx::query(
                "INSERT INTO consumer_group (id, name, filters, cursor, revision, keyed) VALUES (?, ?, ?, ?, ?, ?) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(id)
            .bind(&name)
            .bind(filters)
            .bind(known.cursor)
            .bind(known.revision + 1)
            .bind(keyed)
            .execute(&mut *connection)
            .await?;
            let row = sqlx::query("SELECT 1 FROM consumer_group WHERE id = ? AND name = ?");
            let ours = row.bind(id).bind(&name).fetch_optional(connection).await?.is_some();
            Ok(if ours { Restored::Done } else { Restored::Deleted })
        })
    });
    match job.await? {
        Restored::Done => {
            tracing::error!(
                group = %member.feed.name, position = known.cursor,
                "another program removed the group's row from the file; it is created again at the last known position"
            );
            Ok(())
        }
        Restored::Deleted => Err(group_gone(member)),
        Restored::Refused => {
            let missing = member.terms.provision.missing(format!("group {}", member.feed.name));
            Err(Error::new(ErrorKind::Unavailable, missing.to_string()).during("fetch"))
        }
    }
}

/// The result of [`restore`]'s transaction.
enum Restored {
    Done,
    /// The group was deleted, or another group has its name.
    Deleted,
    /// `provision` does not allow it.
    Refused,
}
