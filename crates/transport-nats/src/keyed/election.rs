//! The election of a keyed group's leader through its record: standby members watch the record and take it over, the
//! leader renews it with each write, and a move of the group removes the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;

use super::checkpoint::{Again, Mark, Progress, rewind, subject};
use crate::client::Client;
use crate::group::{Groups, Record, Standing};
use crate::kv;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;

/// The group record as a standby member last saw it.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    sequence: u64,
    /// Time since which it is unchanged.
    since: Instant,
    /// Time of the last read.
    last: Instant,
}

/// The data of a record that was taken over.
pub(super) struct Taken {
    pub(super) sequence: u64,
    pub(super) asked: Instant,
    pub(super) progress: Progress,
    pub(super) record: Record,
    /// Ranges that are read again.
    pub(super) again: BTreeMap<SmolStr, Again>,
}

/// The state of the group that a member itself holds.
pub(super) struct Known {
    pub(super) own: Progress,
    pub(super) record: Record,
    /// The group's marks when this member led it.
    pub(super) marks: BTreeMap<SmolStr, Mark>,
}

/// Result of reading the record.
pub(super) enum Claimed {
    /// Another member leads.
    Led(Seen),
    /// Another member took over first.
    Raced,
    Taken(Box<Taken>),
    /// The group was deleted.
    Gone,
}

/// Result of a write.
pub(super) enum Written {
    Stored(u64),
    /// Refused, because an earlier write of this member had arrived after all. This is its sequence.
    Ours(u64),
    /// Another member leads.
    Lost,
}

/// Takes over the record if no member leads.
pub(super) async fn look(
    groups: Arc<Groups>,
    group: Group,
    lease: Duration,
    seen: Option<Seen>,
    known: Known,
) -> Result<Claimed> {
    let client = &groups.client;
    let subject = subject(client, &group);
    let last = kv::read::<Progress>(client, &subject).await?;
    let now = Instant::now();
    if let Some(stored) = last.as_ref().filter(|stored| !stored.value.left) {
        let since = match seen {
            // A member that has not read the record for a while cannot know whether the leader wrote in between.
            Some(seen) if seen.sequence == stored.sequence && now < seen.last + lease / 2 => seen.since,
            _ => now,
        };
        if now.duration_since(since) < lease {
            return Ok(Claimed::Led(Seen { sequence: stored.sequence, since, last: now }));
        }
    }
    let record = match groups.standing(&group, &known.record).await? {
        Standing::There(record) => record,
        Standing::Deleted => return Ok(Claimed::Gone),
    };
    let (sequence, last) = match last {
        Some(stored) => (stored.sequence, stored.value),
        // The group has had no leader, or the server has lost the record.
        None => {
            let (epoch, changes) = (known.record.epoch, known.record.changes);
            (0, Progress { epoch, changes, topics: known.marks, ..Progress::default() })
        }
    };
    let mut topics = if last.epoch == record.epoch { last.topics } else { Default::default() };
    let again = rewind(&mut topics, last.changes, &record);
    let progress = Progress { topics, epoch: record.epoch, changes: record.changes, ..known.own };
    let asked = Instant::now();
    Ok(match kv::write(client, &subject, &progress, sequence).await? {
        Some(sequence) => Claimed::Taken(Box::new(Taken { sequence, asked, progress, record, again })),
        None => Claimed::Raced,
    })
}

/// Writes the record if its last write has the sequence `after`.
pub(super) async fn write(
    client: Arc<Client>,
    group: Group,
    progress: Progress,
    after: u64,
    within: Duration,
) -> Result<Written> {
    let subject = subject(&client, &group);
    let step = async {
        if let Some(sequence) = kv::write(&client, &subject, &progress, after).await? {
            return Ok(Written::Stored(sequence));
        }
        Ok(match kv::read::<Progress>(&client, &subject).await? {
            Some(last)
                if last.value.connection == progress.connection && last.value.member == progress.member =>
            {
                Written::Ours(last.sequence)
            }
            _ => Written::Lost,
        })
    };
    tokio::time::timeout(within, step).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, "the server did not confirm the group's progress in time"))
    })
}

/// Removes the leader because the group was moved: nothing can be settled under the old epoch any more.
pub(in super::super) async fn depose(client: &Client, group: &Group, epoch: u64) -> Result<()> {
    let subject = subject(client, group);
    loop {
        let Some(last) = kv::read::<Progress>(client, &subject).await? else { return Ok(()) };
        if last.value.epoch >= epoch {
            return Ok(());
        }
        let moved = Progress { left: true, epoch, ..Progress::default() };
        if kv::write(client, &subject, &moved, last.sequence).await?.is_some() {
            tell_led(client, group);
            return Ok(());
        }
    }
}

/// Notifies standby members that the group has no leader.
pub(super) fn tell_led(client: &Client, group: &Group) {
    let subject = async_nats::Subject::from(client.names.led(group));
    client.outbound.send_bare(subject, None, bytes::Bytes::new());
}
