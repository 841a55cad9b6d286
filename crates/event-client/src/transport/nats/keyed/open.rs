//! Requests of the keyed reader: opens a topic from a position, and fetches messages that were begun and not settled,
//! dead-letter replays, and messages that may have broken the connection. `leader/reader.rs` decides when.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use smol_str::{SmolStr, format_smolstr};

use super::checkpoint::REPLAYS;
use super::ephemeral::{self, EphemeralConsumer};
use crate::delivery::DeliveryInfo;
use crate::error::Result;
use crate::message::{Message, MessageId, Position};
use crate::subject::Group;
use crate::transport::nats::connection::Connection;
use crate::transport::nats::group::Record;
use crate::transport::nats::kv::Raw;
use crate::transport::nats::{codec, dead_letters, poison};

/// Largest number of messages that are fetched one by one at a time.
const FETCH: usize = 64;
/// Largest number of messages checked after a disconnect: at least as many as may have been in transit.
const LOOK: usize = 512;

/// A topic that can be read from now on.
pub(super) struct Opened {
    pub(super) topic: SmolStr,
    pub(super) stream: String,
    /// `None` for replays, which are fetched one by one.
    pub(super) consumer: Option<String>,
    /// Creation time of its stream; `None` for replays.
    pub(super) made: Option<Timestamp>,
    /// The stream is not the one that was read before.
    pub(super) anew: bool,
    /// Sequence of the first message that the consumer delivers.
    pub(super) next: u64,
    /// Earlier open messages in order.
    pub(super) open: Vec<Fetched>,
}

/// A message that was fetched by its sequence; `None` for one that the stream no longer has or that cannot be read.
pub(super) type Fetched = (u64, Option<(Message, DeliveryInfo)>);

/// The part of a topic to read: its start, and the open messages that are not loaded.
pub(super) struct Wanted {
    /// Creation time of the stream that the sequences refer to.
    pub(super) made: Option<Timestamp>,
    pub(super) next: u64,
    pub(super) missing: Vec<u64>,
}

/// Opens every topic of the group except those in `known`. `care` means that a message may have broken the
/// connection.
pub(super) async fn open(
    connection: Arc<Connection>,
    group: Group,
    mut record: Record,
    mut wanted: BTreeMap<SmolStr, Wanted>,
    known: Vec<SmolStr>,
    care: bool,
) -> Result<Vec<Opened>> {
    let mut topics = connection.topics_of(&record).await?;
    let mut made = BTreeMap::new();
    for topic in topics.iter().filter(|topic| !known.contains(topic)) {
        made.insert(topic.clone(), connection.stand(topic).await?);
    }
    record = connection.identify(&group, record).await?;
    if record.replays {
        topics.push(SmolStr::new_static(REPLAYS));
    }
    let mut all = Vec::new();
    for topic in topics.into_iter().filter(|topic| !known.contains(topic)) {
        let is_replays = topic == REPLAYS;
        let stream = if is_replays { connection.names.work() } else { connection.names.stream(&topic) };
        let made = made.get(&topic).copied().flatten();
        let wanted = wanted.remove(&topic);
        let before = wanted.as_ref().and_then(|wanted| wanted.made);
        if before.is_some() && made.is_some() && before != made {
            let (consumer, next, open) = (None, 0, Vec::new());
            all.push(Opened { topic, stream, consumer, made, anew: true, next, open });
            continue;
        }
        let (mut next, missing) =
            wanted.map_or((None, Vec::new()), |wanted| (Some(wanted.next), wanted.missing));
        let mut open = futures_util::stream::iter(missing)
            .map(|sequence| {
                let (connection, stream, topic) = (&connection, &stream, &topic);
                async move { Ok((sequence, fetch(connection, stream, topic, sequence).await?)) }
            })
            .buffered(FETCH)
            .collect::<Vec<Result<_>>>()
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        if care
            && !is_replays
            && let Some(next) = next.as_mut().filter(|next| **next > 0)
        {
            open.extend(look(&connection, &group, &record, &topic, next).await?);
        }
        let (consumer, next) = if is_replays {
            (None, next.unwrap_or(1))
        } else {
            let from = ephemeral::start(&record, &topic, next);
            let filters = connection.filters_of(&record, &topic);
            let EphemeralConsumer { name, first, .. } =
                ephemeral::create(&connection, &stream, &from, &filters).await?;
            (Some(name), next.unwrap_or(0).max(first))
        };
        all.push(Opened { topic, stream, consumer, made, anew: false, next, open });
    }
    Ok(all)
}

/// Fetches the next messages one by one and moves `next` behind them. Unreadable messages become dead letters.
async fn look(
    connection: &Connection,
    group: &Group,
    record: &Record,
    topic: &str,
    next: &mut u64,
) -> Result<Vec<Fetched>> {
    let stream = connection.names.stream(topic);
    let mut found = Vec::new();
    for _ in 0..LOOK {
        let which = json!({ "seq": *next, "next_by_subj": connection.names.event(">") });
        let Some(raw) = connection.read_raw(&stream, which).await? else { break };
        if let Some(why) = poison::defect(&raw) {
            let id =
                format!("dlq/{stream}/{group}@{}/{}/{}", record.epoch, raw.seq, raw.time.as_nanosecond());
            poison::bury_raw(connection, group, &stream, &raw, id, why).await?;
            found.push((raw.seq, None));
        } else {
            match read(connection, &stream, topic, &raw) {
                Some((message, _)) if !record.wants(&message.subject, raw.seq) => {}
                read => found.push((raw.seq, read)),
            }
        }
        *next = raw.seq + 1;
    }
    Ok(found)
}

/// Returns replays from `next` on, at most `room`.
pub(super) async fn replays(
    connection: Arc<Connection>,
    group: Group,
    mut next: u64,
    room: usize,
) -> Result<Vec<Fetched>> {
    let stream = connection.names.work();
    let subject = connection.names.replayed(&group);
    let mut found = Vec::new();
    while found.len() < room {
        let which = json!({ "seq": next.max(1), "next_by_subj": subject });
        let Some(raw) = connection.read_raw(&stream, which).await? else { break };
        next = raw.seq + 1;
        found.push((raw.seq, read(&connection, &stream, REPLAYS, &raw)));
    }
    Ok(found)
}

async fn fetch(
    connection: &Connection,
    stream: &str,
    topic: &str,
    sequence: u64,
) -> Result<Option<(Message, DeliveryInfo)>> {
    let raw = connection.read_raw(stream, json!({ "seq": sequence })).await?;
    Ok(raw.and_then(|raw| read(connection, stream, topic, &raw)))
}

fn read(connection: &Connection, stream: &str, topic: &str, raw: &Raw) -> Option<(Message, DeliveryInfo)> {
    let headers = raw.headers();
    let mut info = about(raw.seq, raw.time);
    let message = if topic == REPLAYS {
        dead_letters::copy(&headers, raw.payload().into(), &mut info)?
    } else {
        let subject = codec::subject(&connection.names, &raw.subject)?;
        let id = || MessageId::Text(format_smolstr!("{stream}/{}", raw.seq));
        codec::message(Some(&headers), raw.payload().into(), subject, id)
    };
    Some((message, info))
}

/// Returns the delivery data of a message at this sequence.
pub(super) fn about(sequence: u64, published_at: Timestamp) -> DeliveryInfo {
    let mut info = DeliveryInfo::new(0);
    info.position = Some(Position(u128::from(sequence)));
    info.published_at = Some(published_at);
    info
}
