//! Joining a group and feeding a subscription: due redeliveries first, then fresh messages by the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::{Answers, Database, Open, Script};
use super::error::Sql;
use super::fetch;
use super::filters::Filters;
use super::scan::Scan;
use super::schema::PARKED;
use super::settle::{Member, Terms};
use super::takeover::{self, Seen};
use crate::confirm::Answer;
use crate::delivery::{Delivery, DeliveryInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::{Group, Pattern};
use crate::subscription::{Feed, Health, Subscription};
use crate::transport::{Start, Subscribe};

/// The longest wait without a look, for calls that got lost and owners that died.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// Wait after a failure.
const PAUSE: Duration = Duration::from_millis(200);

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
}

/// A group's place in the log as last seen; the file may be further.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) scan: Scan,
    /// The row's cursor; `None` before it was read.
    pub(super) cursor: Option<i64>,
    pub(super) revision: i64,
}

/// A claim on a run of fresh messages.
pub(super) struct Claim {
    pub(super) group: i64,
    pub(super) revision: i64,
    pub(super) member: i64,
    /// The cursor that it starts from, and where it leaves it.
    pub(super) from: i64,
    pub(super) to: i64,
    /// First position and all, as runs; `None` only moves the cursor over what does not match.
    pub(super) pending: Option<(i64, Vec<u8>)>,
    pub(super) answer: Answer<Claimed>,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Ours, under this lease.
    Lease(i64),
    /// The cursor moved.
    Moved,
    /// Somebody else was there first, or the group or the membership changed.
    Refused,
}

impl Claim {
    pub(super) fn write(&self, script: &mut Script) -> (usize, Option<usize>) {
        let moved = script.statement(
            "UPDATE consumer_group SET cursor = ? WHERE id = ? AND cursor = ? AND revision = ? \
             AND (keyed = 0 OR active = ?) AND EXISTS (SELECT 1 FROM member WHERE id = ?) RETURNING id",
        );
        script.bind(self.to).bind(self.group).bind(self.from).bind(self.revision);
        script.bind(self.member).bind(self.member);
        let leased = self.pending.as_ref().map(|(first, pending)| {
            let step = script.statement(
                "INSERT INTO lease (grp, member, first, at, pending) SELECT ?, ?, ?, ?, ? WHERE changes() = 1 RETURNING id",
            );
            script.bind(self.group).bind(self.member).bind(*first).bind(codec::now()).bind(pending.as_slice());
            step
        });
        (moved, leased)
    }

    pub(super) fn finish(self, answers: &Answers, (moved, leased): (usize, Option<usize>)) {
        let lease = leased.and_then(|step| answers[step].first()).and_then(|row| row.try_get(0).ok());
        let claimed = match (lease, answers[moved].is_empty()) {
            (_, true) => Claimed::Refused,
            (Some(lease), false) => Claimed::Lease(lease),
            (None, false) => Claimed::Moved,
        };
        let _ = self.answer.send(Ok(claimed));
    }
}

/// Joins the group, creating it if need be, and starts to feed.
pub(super) async fn group(
    open: Arc<Open>,
    group: Group,
    spec: Subscribe,
    fsync: bool,
) -> Result<(Arc<Member>, Subscription)> {
    let name = group.to_string();
    let process = open.peers.me().to_owned();
    let Subscribe { filters, start, lease, credit, keyed, .. } = spec;
    let lease = lease.clamp(Duration::from_millis(50), Duration::from_secs(86_400 * 365));
    let until = codec::now().saturating_add(lease.as_nanos() as i64);
    let attempt = async || {
        let (name, filters, process) = (name.clone(), filters.clone(), process.clone());
        let job = open.write("subscribe", move |connection| {
            Box::pin(async move {
                Ok(match ensure_group(connection, &name, &filters, start, keyed).await? {
                    Ok(id) => Ok((id, join(connection, id, &process, until).await?)),
                    Err(others) => Err(others),
                })
            })
        });
        job.await
    };
    let mut joined = attempt().await?;
    if let Err(others) = &joined {
        // Those that died have no say, and are not always buried yet.
        takeover::bury(&open, others).await?;
        joined = attempt().await?;
    }
    let (id, member) = joined.map_err(|_| {
        let (they, we) = if keyed { ("not keyed", "keyed") } else { ("keyed", "not keyed") };
        let text =
            format!("the group's members at work are {they}, this subscription is {we}; make them agree");
        Error::new(ErrorKind::Config, text).during("subscribe").with("group", &group)
    })?;
    let feed = {
        let mut groups = open.groups.lock().expect("not poisoned");
        groups.retain(|_, feed| feed.strong_count() > 0);
        match groups.get(&id).and_then(std::sync::Weak::upgrade) {
            Some(feed) => feed,
            None => {
                let feed = Arc::new(GroupFeed {
                    id,
                    name: group,
                    redeliver: AtomicBool::new(true),
                    next_due: AtomicI64::new(PARKED),
                    fresh: Default::default(),
                });
                groups.insert(id, Arc::downgrade(&feed));
                feed
            }
        }
    };
    let (sender, subscription) = Subscription::channel(credit);
    let member = Member::new(
        Arc::clone(&open),
        feed,
        member,
        Terms { lease, fsync, keyed, credit },
        sender.stopped().clone(),
    );
    open.members
        .lock()
        .expect("not poisoned")
        .insert(member.id.load(Ordering::Acquire), Arc::downgrade(&member));
    open.keeper.notify_one();
    tokio::spawn(run(open, member.clone(), sender));
    Ok((member, subscription))
}

/// The group's row, made or brought up to date; or the processes of live members that disagree on `keyed`.
async fn ensure_group(
    connection: &mut SqliteConnection,
    name: &str,
    patterns: &[Pattern],
    start: Start,
    keyed: bool,
) -> Sql<std::result::Result<i64, Vec<Seen>>> {
    let found = sqlx::query("SELECT id, filters, keyed, cursor FROM consumer_group WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = found else {
        let cursor = resolve(connection, start).await?;
        let row = sqlx::query(
            "INSERT INTO consumer_group (name, filters, cursor, revision, keyed) VALUES (?, ?, ?, 1, ?) RETURNING id",
        )
        .bind(name)
        .bind(Filters::new(patterns.to_vec()).to_text())
        .bind(cursor)
        .bind(keyed)
        .fetch_one(&mut *connection)
        .await?;
        return Ok(Ok(row.try_get(0)?));
    };
    let (id, was_keyed, cursor): (i64, bool, i64) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
    let mut filters = Filters::parse(row.try_get(1)?)?;
    if was_keyed != keyed {
        let others = takeover::members(connection, &[id]).await?;
        if !others.is_empty() {
            return Ok(Err(others));
        }
        // What waited behind its key need not any more; a keyed member looks at the order itself.
        sqlx::query("UPDATE redelivery SET due = 0 WHERE grp = ? AND due = ?")
            .bind(id)
            .bind(PARKED)
            .execute(&mut *connection)
            .await?;
    }
    if was_keyed != keyed || filters.latest() != patterns {
        let end = resolve(connection, Start::New).await?;
        if filters.latest() != patterns {
            filters.change(patterns.to_vec(), end, cursor);
        }
        sqlx::query(
            "UPDATE consumer_group SET filters = ?, keyed = ?, active = NULL, revision = revision + 1 WHERE id = ?",
        )
        .bind(filters.to_text())
        .bind(keyed)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    }
    Ok(Ok(id))
}

/// A new row for a member of the group.
async fn join(connection: &mut SqliteConnection, group: i64, process: &str, until: i64) -> Sql<i64> {
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

async fn run(open: Arc<Open>, member: Arc<Member>, feed: Feed) {
    let mut changed = open.changed.subscribe();
    loop {
        if feed.stopped().is_cancelled() || open.inbox.is_closed() {
            break;
        }
        changed.borrow_and_update();
        if feed.free() == 0 {
            tokio::select! {
                slot = feed.slot() => drop(slot),
                () = feed.stopped().cancelled() => {}
            }
            continue;
        }
        let fetched = async {
            if member.lost.load(Ordering::Acquire) {
                rejoin(&open, &member).await?;
            }
            fetch::fetch(&member, &feed).await
        };
        match fetched.await {
            Ok(fetched) => {
                feed.report(Health::Live);
                if fetched {
                    continue;
                }
                let due = member.feed.next_due.load(Ordering::Acquire);
                let wait = Duration::from_nanos(u64::try_from(due.saturating_sub(codec::now())).unwrap_or(0));
                tokio::select! {
                    _ = changed.changed() => {}
                    () = member.settled.notified(), if member.lanes.is_some() => {}
                    () = sleep_until(Instant::now() + wait.min(POLL)) => {}
                    () = feed.stopped().cancelled() => {}
                }
            }
            Err(error) if error.kind() == ErrorKind::Closed => break,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(group = %member.feed.name, "the group was deleted; its subscription ends");
                break;
            }
            Err(error) => {
                tracing::warn!(group = %member.feed.name, %error, "cannot fetch; trying again");
                feed.report(Health::Rebuilding(error.to_string()));
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = feed.stopped().cancelled() => {}
                }
            }
        }
    }
    let gone = feed.gone().clone();
    drop(feed);
    member.idle.cancel();
    leave(&open, &member, &gone).await;
    // In this order: whoever waits for the end may be the last who has the file open.
    drop(open);
    member.left.cancel();
}

/// What was taken stays leased until it is settled, or until the consumer is gone for as long as a lease lasts.
async fn leave(open: &Arc<Open>, member: &Arc<Member>, gone: &CancellationToken) {
    drop(member.unpark());
    let settled = async {
        while member.outstanding() > 0 && !open.inbox.is_closed() {
            // The timeout looks at the bus again, not at the clock.
            let _ = timeout(POLL, member.settled.notified()).await;
        }
    };
    let id = member.id.load(Ordering::Acquire);
    let forget = || open.members.lock().expect("not poisoned").remove(&id);
    tokio::select! {
        () = settled => {}
        () = async {
            gone.cancelled().await;
            forget();
            // A handler that outlives its subscription may go on renewing for itself.
            let mut since = Instant::now();
            loop {
                sleep_until(since + member.lease).await;
                let told = *member.told.lock().expect("not poisoned");
                if told <= since {
                    break;
                }
                since = told;
            }
        } => {}
    }
    forget();
    // Its row runs out by itself when this fails.
    let left = open.write("unsubscribe", move |connection| Box::pin(takeover::reap(connection, id)));
    let _ = left.await;
    open.wake_everywhere();
}

/// Takes part again after the leases were lost.
async fn rejoin(open: &Arc<Open>, member: &Arc<Member>) -> Result<()> {
    let (group, old) = (member.feed.id, member.id.load(Ordering::Acquire));
    let process = open.peers.me().to_owned();
    let until = codec::now().saturating_add(member.lease.as_nanos() as i64);
    let joined = open.write("subscribe", move |connection| {
        Box::pin(async move {
            let known = sqlx::query("SELECT 1 FROM consumer_group WHERE id = ?")
                .bind(group)
                .fetch_optional(&mut *connection)
                .await?;
            match known {
                Some(_) => join(connection, group, &process, until).await.map(Some),
                None => Ok(None),
            }
        })
    });
    let id = joined.await?.ok_or_else(|| group_gone(member))?;
    tracing::warn!(group = %member.feed.name, "the leases ran out while this process did not run; going on with new ones");
    member.restart(id);
    let mut members = open.members.lock().expect("not poisoned");
    members.remove(&old);
    members.insert(id, Arc::downgrade(member));
    Ok(())
}

pub(super) fn group_gone(member: &Member) -> Error {
    Error::new(ErrorKind::NotFound, "the group does not exist any more")
        .during("fetch")
        .with("group", &member.feed.name)
}

/// Sees everything that matches, settles nothing.
pub(super) async fn broadcast(
    open: Arc<Open>,
    spec: Subscribe,
    closing: CancellationToken,
) -> Result<Subscription> {
    let position = {
        let mut reader = open.readers.acquire().await.map_err(|error| open.explain(&error, "subscribe"))?;
        resolve(&mut reader, spec.start).await.map_err(|error| open.explain(&error, "subscribe"))?
    };
    let (feed, subscription) = Subscription::channel(spec.credit);
    tokio::spawn(async move {
        tokio::select! {
            () = tail(&open, &feed, position, spec.filters) => {}
            () = feed.stopped().cancelled() => {}
            () = closing.cancelled() => {}
        }
    });
    Ok(subscription)
}

async fn tail(open: &Open, feed: &Feed, position: i64, filters: Vec<Pattern>) {
    let mut changed = open.changed.subscribe();
    let mut scan = Scan::default();
    scan.restart(position, Filters::new(filters));
    while !open.inbox.is_closed() {
        changed.borrow_and_update();
        match read_on(open, &mut scan).await {
            Ok(more) => {
                feed.report(Health::Live);
                let now = codec::now();
                while let Some(stored) = scan.buffer.pop_front() {
                    if stored.is_expired(now) {
                        continue;
                    }
                    let slot = feed.slot().await;
                    let mut info = DeliveryInfo::new(1);
                    info.position = Some(super::publish::position(stored.seq));
                    info.published_at = codec::timestamp(stored.published);
                    feed.push(Delivery::unleased(stored.message, info, Some(slot)));
                }
                if !more {
                    let _ = timeout(POLL, changed.changed()).await;
                }
            }
            Err(error) => {
                let error = open.explain(&error, "fetch");
                feed.report(Health::Rebuilding(error.to_string()));
                sleep(PAUSE).await;
            }
        }
    }
}

/// Reads on, and says so when retention was faster.
async fn read_on(database: &Database, scan: &mut Scan) -> Sql<bool> {
    let from = scan.seen;
    let more = scan.fill(&database.readers).await?;
    let purged = database.purged.load(Ordering::Acquire);
    if purged > from && from > 0 {
        metrics::counter!("event_client_broadcast_lost_total").increment((purged - from) as u64);
        tracing::warn!(
            from,
            to = purged,
            "a broadcast subscriber was slower than the retention; it has lost what matched in between"
        );
    }
    Ok(more)
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
