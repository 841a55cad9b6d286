//! Joins a group, and runs the task that fetches messages for one subscription.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::Open;
use super::error::lost;
use super::failover;
use super::fetch;
use super::group::{self, Ensured, ensure_group, group_gone, join};
use super::member::{Member, Terms};
use super::membership::Membership;
use super::schema::PARKED;
use super::wake::{PAUSE, POLL};
use event_transport::error::{ErrorKind, Result};
use event_transport::outage::Outage;
use event_transport::subject::Group;
use event_transport::subscription::{Feed, Subscription};
use event_transport::supervise;
use event_transport::{Change, Mode, Provision, Subscribe};

/// The longest wait for a redelivery that is due later: the clock may be set meanwhile.
const LONGEST: Duration = Duration::from_secs(10);

/// Joins the group, creates it if necessary, and starts the task that fetches for the subscription.
pub(super) async fn group(
    open: Arc<Open>,
    group: Group,
    spec: Subscribe,
    fsync: bool,
    provision: Provision,
) -> Result<(Arc<Member>, Subscription)> {
    let process = open.database.processes.me().to_owned();
    let Subscribe { lease, max_in_flight, keyed, .. } = spec;
    let filters = spec.filters.clone();
    let until = codec::now_and(lease);
    let attempt = async || {
        let (spec, process) = (spec.clone(), process.clone());
        let job = open.database.write("subscribe", move |connection| {
            Box::pin(async move {
                Ok(match ensure_group(connection, &spec, provision).await? {
                    Ensured::Group(id) => Ok(Ok((id, join(connection, id, &process, until).await?))),
                    Ensured::Others(others) => Ok(Err(others)),
                    Ensured::Refused(error) => Err(error.during("subscribe")),
                })
            })
        });
        job.await?
    };
    let mut joined = attempt().await?;
    if let Err(others) = &joined {
        // Dead members must not prevent the change, and their rows may still exist: remove them and try again.
        failover::dead_letter(&open.database, others).await?;
        joined = attempt().await?;
    }
    let (id, member) = joined.map_err(|_| group::disagree(&group, keyed).during("subscribe"))?;
    let feed = open.groups.join(id, group);
    // The row is remembered from the start, so that it can be created again if another program removes it.
    if let Some((cursor, revision, filters)) =
        group::reload(&open.database, id).await.map_err(|error| open.database.explain(&error, "subscribe"))?
    {
        feed.note(cursor, Some((revision, &filters)));
    }
    let (sender, subscription) = Subscription::channel(max_in_flight);
    let member = Member::new(
        Arc::clone(&open.database),
        feed,
        Membership::new(member, id, lease),
        Terms { fsync, keyed, max_in_flight, filters, provision },
        sender.stopped().clone(),
    );
    open.members.add(&member.membership);
    open.database.wake.housekeeping.notify_one();
    let ended = (member.ends.idle.clone(), member.ends.left.clone());
    tokio::spawn(supervise::run("sqlite fetch", run(open, member.clone(), sender), move || {
        // After a panic the member's row is no longer renewed and expires with its lease.
        ended.0.cancel();
        ended.1.cancel();
    }));
    Ok((member, subscription))
}

/// Creates or changes a group as `spec` requires, without joining it. Returns the change that was necessary.
pub(super) async fn provide(open: &Open, spec: Subscribe) -> Result<Option<Change>> {
    let attempt = async || {
        let spec = spec.clone();
        let job = open.database.write("apply topology", move |connection| {
            Box::pin(async move {
                let change = group::compare(connection, &spec).await?;
                Ok((change, ensure_group(connection, &spec, Provision::Update).await?))
            })
        });
        job.await
    };
    let mut provided = attempt().await?;
    if let (_, Ensured::Others(others)) = &provided {
        failover::dead_letter(&open.database, others).await?;
        provided = attempt().await?;
    }
    match (provided, spec.mode) {
        ((_, Ensured::Others(_)), Mode::Group(group)) => {
            Err(group::disagree(&group, spec.keyed).during("apply topology"))
        }
        ((_, Ensured::Refused(error)), _) => Err(error.during("apply topology")),
        ((change, _), _) => {
            open.database.wake_everywhere();
            Ok(change)
        }
    }
}

async fn run(open: Arc<Open>, member: Arc<Member>, feed: Feed) {
    let database = &open.database;
    let mut changed = database.wake.subscribe();
    let mut outage = Outage::default();
    loop {
        if feed.stopped().is_cancelled() || database.queue.is_closed() {
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
        let was_active = member.membership.is_active();
        let fetched = async {
            database.file.still_intact().map_err(|gone| lost(&gone, "fetch"))?;
            if member.membership.is_lost() {
                rejoin(&open, &member).await?;
            }
            fetch::fetch(&member, &feed).await
        };
        match fetched.await {
            Ok(fetched) => {
                outage.ends_for(&member.feed.name, &feed);
                let fenced = was_active && !member.membership.is_active();
                if fetched || fenced || member.membership.is_lost() {
                    continue;
                }
                let due = member.feed.next_due.load(Ordering::Acquire);
                let wait = Duration::from_nanos(u64::try_from(due.saturating_sub(codec::now())).unwrap_or(0));
                // Without a redelivery that is due later, this task sleeps until it is woken.
                let due_at = (due < PARKED).then(|| Instant::now() + wait.min(LONGEST));
                let look_at = member.lanes.as_ref().and_then(|lanes| lanes.lock().wakes_at());
                let at = due_at.into_iter().chain(look_at.map(Instant::from_std)).min();
                let key_changed = async {
                    match &member.lanes {
                        Some(lanes) => lanes.changed.notified().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = changed.changed() => {}
                    () = key_changed => {}
                    () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {}
                    () = feed.stopped().cancelled() => {}
                }
            }
            Err(error) if error.kind() == ErrorKind::Closed => break,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(group = %member.feed.name, "the group was deleted; the subscription ends");
                break;
            }
            Err(error) => {
                outage.begins_for(&member.feed.name, &feed, &error.to_string());
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = feed.stopped().cancelled() => {}
                }
            }
        }
    }
    let gone = feed.gone().clone();
    drop(feed);
    member.ends.idle.cancel();
    leave(&open, &member, &gone).await;
    // The order matters: the task that waits for `left` may hold the last other reference to the open file.
    drop(open);
    member.ends.left.cancel();
}

/// Ends the membership. Taken deliveries stay leased until they are settled, or until one lease time has passed since
/// the consumer dropped the subscription.
async fn leave(open: &Arc<Open>, member: &Arc<Member>, gone: &CancellationToken) {
    drop(member.unpark());
    let settled = async {
        while member.outstanding() > 0 && !open.database.queue.is_closed() {
            // The timeout only serves to check again whether the database is closed.
            let _ = timeout(POLL, member.settled.notified()).await;
        }
    };
    let id = member.membership.id();
    let forget = || open.members.remove(id);
    tokio::select! {
        () = settled => {}
        () = async {
            gone.cancelled().await;
            forget();
            // A handler that still runs after its subscription was dropped may renew the lease itself, with
            // `in_progress`.
            let mut since = Instant::now();
            loop {
                sleep_until(since + member.membership.lease).await;
                let kept = member.membership.kept();
                if kept <= since {
                    break;
                }
                since = kept;
            }
        } => {}
    }
    forget();
    // If this fails, the row expires with its lease.
    let left = open.database.write("unsubscribe", move |connection| Box::pin(failover::reap(connection, id)));
    let _ = left.await;
    open.database.wake_everywhere();
}

/// Joins the group again, with a new member row, after the leases were lost.
async fn rejoin(open: &Arc<Open>, member: &Arc<Member>) -> Result<()> {
    let (group, old) = (member.feed.id, member.membership.id());
    let process = open.database.processes.me().to_owned();
    let until = codec::now_and(member.membership.lease);
    let joined = open.database.write("subscribe", move |connection| {
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
    tracing::warn!(group = %member.feed.name, "the leases ran out because they were not renewed in time; joining the group again");
    member.restart(id);
    open.members.remove(old);
    open.members.add(&member.membership);
    Ok(())
}
