//! A group's row and what its members in this process share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::claim::Fresh;
use super::codec;
use super::connection::Database;
use super::error::Sql;
use super::failover::{self, Seen};
use super::filters::Filters;
use super::member::Member;
use super::schema::PARKED;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::Group;
use crate::transport::topology::compare_group;
use crate::transport::{Change, Mode, Provision, Start, Subscribe};

/// What the members of a group in this process share.
#[derive(Debug)]
pub(super) struct GroupFeed {
    pub(super) id: i64,
    pub(super) name: Group,
    /// There may be redeliveries that nobody looked at.
    pub(super) redeliver: AtomicBool,
    /// When the next known redelivery is due, nanoseconds since 1970.
    pub(super) next_due: AtomicI64,
    /// Fresh messages are claimed by one member at a time; they take turns.
    pub(super) fresh: tokio::sync::Mutex<Fresh>,
    /// The row as it was last seen, should it be removed.
    known: Mutex<Known>,
}

/// A group's row as a member last saw it.
#[derive(Clone, Debug, Default)]
struct Known {
    cursor: i64,
    revision: i64,
    /// `None` before it was read.
    filters: Option<Filters>,
}

impl GroupFeed {
    pub(super) fn new(id: i64, name: Group) -> Self {
        Self {
            id,
            name,
            redeliver: AtomicBool::new(true),
            next_due: AtomicI64::new(PARKED),
            fresh: Default::default(),
            known: Mutex::default(),
        }
    }

    /// The row's cursor was seen there, with its revision and filters where these were read.
    pub(super) fn note(&self, cursor: i64, row: Option<(i64, &Filters)>) {
        let mut known = self.known.lock().expect("not poisoned");
        known.cursor = cursor;
        if let Some((revision, filters)) = row {
            (known.revision, known.filters) = (revision, Some(filters.clone()));
        }
    }
}

/// What became of a group that a subscription needs.
pub(super) enum Ensured {
    /// Its row stands.
    Group(i64),
    /// These members are perhaps alive and treat keys otherwise.
    Others(Vec<Seen>),
    /// It may not be made or changed.
    Refused(Error),
}

/// A group's row as far as subscriptions decide about it.
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

/// What the group of `spec` lacks of what it asks.
pub(super) async fn compare(connection: &mut SqliteConnection, spec: &Subscribe) -> Sql<Option<Change>> {
    let Mode::Group(name) = &spec.mode else { return Ok(None) };
    let found = find(connection, name.as_str()).await?;
    Ok(compare_group(spec, found.as_ref().map(|row| (row.filters.latest(), row.keyed))))
}

/// The group's row, made or brought up to date as far as `provision` allows.
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
        // What waited behind its key need not any more; a keyed member looks at the order itself.
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

/// The refusal to change how a group treats keys while members are at work.
pub(super) fn disagree(group: &Group, keyed: bool) -> Error {
    let (they, we) = if keyed { ("not keyed", "keyed") } else { ("keyed", "not keyed") };
    let text = format!("the group's members at work are {they}, this subscription is {we}; make them agree");
    Error::new(ErrorKind::Config, text).with("group", group)
}

/// A new row for a member of the group.
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

/// The position behind which `start` begins.
pub(super) async fn resolve(connection: &mut SqliteConnection, start: Start) -> Sql<i64> {
    let end = async |connection: &mut SqliteConnection| -> Sql<i64> {
        sqlx::query("SELECT ifnull(max(last), 0) FROM segment").fetch_one(connection).await?.try_get(0)
    };
    match start {
        Start::New => end(connection).await,
        Start::Earliest => Ok(0),
        Start::Position(Position(position)) => {
            let wanted = i64::try_from(position).unwrap_or(i64::MAX).saturating_sub(1).max(0);
            // Beyond the end is the end: or what comes next would never be delivered.
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

/// A group's row as a member reads it: cursor, revision and filters.
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

/// Makes the group's row again that was removed behind the library's back, where this member knows the group to be.
///
/// Whoever deletes a group through the library deletes the rows of its members with it: a member whose own row is gone
/// answers that the group does not exist any more.
pub(super) async fn restore(member: &Member) -> Result<()> {
    let (id, me) = (member.feed.id, member.id.load(Ordering::Acquire));
    let name = member.feed.name.to_string();
    let known = member.feed.known.lock().expect("not poisoned").clone();
    let filters = known.filters.unwrap_or_else(|| Filters::new(member.filters.clone())).to_text();
    let keyed = member.lanes.is_some();
    let creates = member.provision.creates();
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
                "the group's row was removed from the file by somebody else; it is made again where this member knows the group to be"
            );
            Ok(())
        }
        Restored::Deleted => Err(group_gone(member)),
        Restored::Refused => {
            let missing = member.provision.missing(format!("group {}", member.feed.name));
            Err(Error::new(ErrorKind::Unavailable, missing.to_string()).during("fetch"))
        }
    }
}

/// What became of a row that was removed.
enum Restored {
    Done,
    /// The group was deleted, or another one has its name.
    Deleted,
    /// `provision` does not allow it.
    Refused,
}
