//! Renews leases: a member claims its unsettled entries again every third of the lease, whether they wait or are being
//! handled.

use std::sync::Arc;

use redis::Pipeline;
use tokio::time::Instant;

use super::codec::{args, number, parts};
use super::error::reply;
use super::keys::Source;
use super::member::Member;
use super::ownership::releasing;
use super::scripts;
use event_transport::bounds;
use event_transport::error::Result;
use event_transport::sync::lock;

/// Maximum number of leases that one script renews.
const CHUNK: usize = 500;
/// Renews until the last clone of the subscription is dropped; then waits up to one lease for the last deliveries.
pub(super) async fn keep(member: Arc<Member>, gone: tokio_util::sync::CancellationToken) {
    let mut beat = tokio::time::interval(member.lease / 3);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    let ended = member.ended.clone();
    let mut told = false;
    loop {
        tokio::select! {
            () = gone.cancelled() => break,
            () = member.closed.cancelled() => return, // `part` leaves the group
            () = ended.cancelled(), if !told => {
                told = true;
                leave(&member).await;
            }
            () = member.signals.room.notified(), if told => {}
            _ = beat.tick() => {
                if let Err(error) = renew(&member, !told).await {
                    tracing::debug!(group = %member.group, %error, "cannot renew leases");
                }
            }
        }
        if told && is_idle(&member) {
            give_up(&member).await;
        }
    }
    leave(&member).await;
    // Deliveries that were given back still wait for their confirmation; forgotten deliveries expire with their lease.
    let end = Instant::now() + member.lease;
    while !is_idle(&member) && Instant::now() < end {
        tokio::select! {
            () = member.signals.room.notified() => {}
            () = tokio::time::sleep_until(end) => {}
            () = member.client.connection.closed.cancelled() => return,
        }
    }
    if is_idle(&member) {
        give_up(&member).await;
    }
}

/// Leaves the group now.
pub(super) async fn part(member: &Member) {
    leave(member).await;
    if is_idle(member) {
        give_up(member).await;
    }
}

fn is_idle(member: &Member) -> bool {
    member.unsettled() == 0
}

/// Ends the membership: the member takes no more entries.
async fn leave(member: &Member) {
    let mut command = redis::cmd("ZREM");
    command.arg(member.client.keys.members(member.group.as_str())).arg(member.consumer.as_str());
    if let Err(error) = member.client.connection.ask(command).await {
        tracing::debug!(group = %member.group, %error, "cannot leave the group; the membership expires automatically");
    }
}

/// Releases its ownerships, and removes its consumers that have no pending entries.
async fn give_up(member: &Member) {
    let owned = std::mem::take(&mut *lock(&member.keyed.owned));
    let mut pipeline = Pipeline::new();
    for owned in owned {
        pipeline.add_command(releasing(member, &owned.topic));
    }
    let joined = std::mem::take(&mut *lock(&member.joined));
    for (source, name) in joined {
        let mut command = scripts::LEAVE.on(&[&source.stream]);
        command.arg(&*name).arg(member.consumer.as_str());
        pipeline.add_command(command);
    }
    if !pipeline.is_empty() {
        drop(member.client.connection.run(&pipeline).await);
    }
}

/// Entries of one group and source, with their tokens.
type Batch = (Arc<Source>, Arc<str>, Vec<(usize, super::codec::EntryId)>);

async fn renew(member: &Member, lives: bool) -> Result<()> {
    let mut batches: Vec<Batch> = Vec::new();
    for (token, held) in &*lock(&member.table) {
        let same = |batch: &&mut Batch| {
            Arc::ptr_eq(&batch.0, &held.source) && batch.1 == held.name && batch.2.len() < CHUNK
        };
        match batches.iter_mut().find(same) {
            Some(batch) => batch.2.push((token, held.id)),
            None => batches.push((held.source.clone(), held.name.clone(), vec![(token, held.id)])),
        }
    }
    let keys = &member.client.keys;
    let consumer = member.consumer.as_str();
    let mut pipeline = Pipeline::new();
    for (source, name, entries) in &batches {
        let mut command = scripts::RENEW.on(&[&source.stream]);
        command.arg(&**name).arg(consumer);
        args(&mut command, entries.iter().map(|(_, id)| *id));
        pipeline.add_command(command);
    }
    let owned: Vec<_> = lock(&member.keyed.owned).iter().map(|owned| owned.topic.clone()).collect();
    for topic in &owned {
        let mut command = scripts::OWN.on(&[&keys.owner(topic, member.group.as_str())]);
        command.arg(consumer).arg(bounds::millis(member.lease)).arg("").arg("");
        pipeline.add_command(command);
    }
    if lives {
        let mut command = scripts::BEAT.on(&[&keys.members(member.group.as_str())]);
        command.arg(consumer).arg(member.life_millis());
        pipeline.add_command(command);
    }
    if pipeline.is_empty() {
        return Ok(());
    }
    let safe = member.safe_from(Instant::now());
    let mut replies = member.client.connection.run(&pipeline).await?.into_iter();
    for (_, _, entries) in batches {
        let answer = parts(reply(replies.next().unwrap_or_default()).unwrap_or_default());
        let mut table = lock(&member.table);
        for ((token, id), ours) in entries.into_iter().zip(answer) {
            if let Some(held) = table.get_mut(token)
                && held.id == id
                && number(&ours) > 0
            {
                held.safe_until = held.safe_until.max(safe);
            }
        }
    }
    for (topic, answer) in owned.into_iter().zip(replies) {
        let ours = number(&answer) > 0;
        let mut owned = lock(&member.keyed.owned);
        match owned.iter().position(|owned| owned.topic == topic) {
            Some(at) if !ours => {
                owned.remove(at);
                member.signals.changed();
            }
            Some(at) => owned[at].safe_until = safe,
            None => {}
        }
    }
    Ok(())
}
