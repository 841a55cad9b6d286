//! Acknowledges entries that a group does not want: other subjects of its topics, and expired messages.

use std::sync::{Arc, Mutex};

use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::codec::{Entry, EntryId, args};
use super::group::Place;
use super::keys::Source;
use super::member::{Member, Unsettled};
use super::scripts;
use event_transport::delivery::{Settle, Settlement};
use event_transport::sync::lock;
use event_transport::telemetry;

/// Entries that were checked against outdated patterns: source, the group's name, entries with attempts, and the time
/// of the read.
pub(super) type Misjudged = (Arc<Source>, Arc<str>, Vec<(Entry, u32)>, Instant);

/// Entries that must be checked again; `None` when the member reads no more.
pub(super) type Stale = Arc<Mutex<Option<Vec<Misjudged>>>>;

/// Gives entries back to the group when the member reads no more and so cannot check them.
pub(super) fn hand_back(member: &Member, settle: &dyn Settle, (source, name, entries, asked): Misjudged) {
    for (entry, attempt) in entries {
        let token = member.hold(Unsettled {
            source: source.clone(),
            name: name.clone(),
            id: entry.id,
            attempt,
            since: asked,
            safe_until: member.safe_from(asked),
            item: None,
        });
        drop(settle.settle(token, Settlement::Release));
    }
}

/// Acknowledges entries that the patterns do not match; if the patterns have changed, the entries are checked again.
pub(super) fn skip(
    member: &Arc<Member>,
    settle: &Arc<dyn Settle>,
    place: &Place,
    entries: Vec<(Entry, u32)>,
    asked: Instant,
    stale: &Stale,
) {
    let keys = &member.client.keys;
    let settings = keys.settings(&place.log.topic, member.group.as_str());
    let mut command = scripts::SKIP.on(&[&place.log.stream, &settings]);
    command.arg(place.version.as_str()).arg(&*place.name);
    args(&mut command, entries.iter().map(|(entry, _)| entry.id));
    let (member, settle, stale) = (member.clone(), settle.clone(), stale.clone());
    let (source, name) = (place.log.clone(), place.name.clone());
    tokio::spawn(async move {
        match member.client.connection.ask(command).await {
            Ok(Value::Int(0)) => {
                let misjudged = (source, name, entries, asked);
                match &mut *lock(&stale) {
                    Some(stale) => stale.push(misjudged),
                    None => return hand_back(&member, &*settle, misjudged),
                }
                member.signals.changed();
            }
            Ok(_) => {}
            // They are delivered again when their lease has expired.
            Err(error) => {
                tracing::debug!(group = %member.group, %error, "cannot acknowledge unwanted entries")
            }
        }
    });
}

/// Acknowledges entries that have expired, and counts them.
pub(super) fn expire(member: &Arc<Member>, source: &Arc<Source>, name: &Arc<str>, ids: &[EntryId]) {
    telemetry::count_expired("redis", ids.len() as u64);
    let mut pipeline = Pipeline::new();
    let mut command = redis::cmd("XACK");
    command.arg(&source.stream).arg(&**name);
    args(&mut command, ids.iter().copied());
    pipeline.add_command(command);
    for (key, name) in [(&source.due, "ZREM"), (&source.notes, "HDEL")] {
        let mut command = redis::cmd(name);
        command.arg(key);
        args(&mut command, ids.iter().copied());
        pipeline.add_command(command);
    }
    let member = member.clone();
    tokio::spawn(async move {
        if let Err(error) = member.client.connection.ask_all(&pipeline).await {
            tracing::debug!(group = %member.group, %error, "cannot acknowledge expired entries");
        }
    });
}
