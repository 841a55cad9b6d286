//! Keyed groups: the right of one member to deliver the messages of a topic, a key with a lease.

use std::time::Duration;

use tokio::time::Instant;

use super::codec::{number, parts};
use super::group::Place;
use super::member::{Member, Owned};
use super::scripts;
use event_transport::bounds;
use event_transport::error::Result;
use event_transport::sync::lock;

/// Becomes the active member of a topic, if no other member is active; otherwise returns the time to wait before the
/// next try.
pub(super) async fn acquire(member: &Member, place: &Place) -> Result<Option<Duration>> {
    let Place { log, replay, name, .. } = place;
    let owner = member.client.keys.owner(&log.topic, member.group.as_str());
    let mut command = scripts::ACQUIRE.on(&[&owner, &log.stream, &log.notes, &replay.stream, &replay.notes]);
    command.arg(&**name).arg(member.consumer.as_str()).arg(bounds::millis(member.lease));
    let safe_until = member.safe_from(Instant::now());
    let answer = parts(member.client.connection.ask(command).await?);
    let state = answer.first().map_or(-1, number);
    if state < 0 {
        let left = answer.get(1).map_or(0, number).max(0) as u64;
        return Ok(Some(Duration::from_millis(left + 5).min(member.lease).max(Duration::from_millis(20))));
    }
    lock(&member.keyed.owned).push(Owned { topic: log.topic.clone(), safe_until });
    Ok(None)
}

/// The time until which this member is certainly the active one of a topic; `None` when it is not.
pub(super) fn safe_until(member: &Member, topic: &str) -> Option<Instant> {
    lock(&member.keyed.owned).iter().find(|owned| owned.topic == topic).map(|owned| owned.safe_until)
}

/// Forgets the ownership of a topic, without a message to the server.
pub(super) fn forget(member: &Member, topic: &str) {
    lock(&member.keyed.owned).retain(|owned| owned.topic != topic);
}

/// Releases the ownership in the server, so that another member can become active at once.
pub(super) async fn release(member: &Member, topic: &str) -> Result<()> {
    member.client.connection.ask(releasing(member, topic)).await.map(drop)
}

/// The command with which a member stops being the active one.
pub(super) fn releasing(member: &Member, topic: &str) -> redis::Cmd {
    let keys = &member.client.keys;
    let mut command = scripts::OWN.on(&[&keys.owner(topic, member.group.as_str())]);
    command.arg(member.consumer.as_str()).arg(0).arg(keys.wake(member.group.as_str()).as_str()).arg("owner");
    command
}
