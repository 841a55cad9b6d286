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
use crate::client::Client;
use crate::dead_letters::DeadLetters;
use crate::group::{Record, consumer};
use crate::kv::{self, Raw};
use crate::{codec, dead_letters, poison};
use event_transport::delivery::DeliveryInfo;
use event_transport::error::Result;
use event_transport::message::{Message, MessageId, Position};
use event_transport::subject::Group;

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
    dead_letters: Arc<DeadLetters>,
    group: Group,
    mut record: Record,
    mut wanted: BTreeMap<SmolStr, Wanted>,
    known: Vec<SmolStr>,
    care: bool,
) -> Result<Vec<Opened>> {
    let client = &dead_letters.client;
    let mut topics = dead_letters.groups.topics_of(&record).await?;
    let mut made = BTreeMap::new();
    for topic in topics.iter().filter(|topic| !known.contains(topic)) {
        made.insert(topic.clone(), dead_letters.groups.stand(topic).await?);
    }
    record = dead_letters.groups.identify(&group, record).await?;
    if record.replays {
        topics.push(SmolStr::new_static(REPLAYS));
    }
    let mut all = Vec::new();
    for topic in topics.into_iter().filter(|topic| !known.contains(topic)) {
        let is_replays = topic == REPLAYS;
        let stream = if is_replays { client.names.work() } else { client.names.stream(&topic) };
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
                let (stream, topic) = (&stream, &topic);
                async move { Ok((sequence, fetch(client, stream, topic, sequence).await?)) }
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
            open.extend(look(&dead_letters, &group, &record, &topic, next).await?);
        }
        let (consumer, next) = if is_replays {
            (None, next.unwrap_or(1))
        } else {
            let from = ephemeral::start(&record, &topic, next);
            let filters = consumer::filters_of(client, &record, &topic);
            let EphemeralConsumer { name, first, .. } =
                ephemeral::create(client, &stream, &from, &filters).await?;
            (Some(name), next.unwrap_or(0).max(first))
        };
        all.push(Opened { topic, stream, consumer, made, anew: false, next, open });
    }
    Ok(all)
}

/// Fetches the next messages one by one and moves `next` behind them. Unreadable messages become dead letters.
async fn look(
    dead_letters: &DeadLetters,
    group: &Group,
    record: &Record,
    topic: &str,
    next: &mut u64,
) -> Result<Vec<Fetched>> {
    let client = &dead_letters.client;
    let stream = client.names.stream(topic);
    let mut found = Vec::new();
    for _ in 0..LOOK {
        let which = json!({ "seq": *next, "next_by_subj": client.names.event(">") });
        let Some(raw) = kv::read_raw(client, &stream, which).await? else { break };
        if let Some(why) = poison::defect(&raw) {
            let id =
                format!("dlq/{stream}/{group}@{}/{}/{}", record.epoch, raw.seq, raw.time.as_nanosecond());
            poison::bury_raw(dead_letters, group, &stream, &raw, id, why).await?;
            found.push((raw.seq, None));
        } else {
            match read(client, &stream, topic, &raw) {
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
    client: Arc<Client>,
    group: Group,
    mut next: u64,
    room: usize,
) -> Result<Vec<Fetched>> {
    let stream = client.names.work();
    let subject = client.names.replayed(&group);
    let mut found = Vec::new();
    while found.len() < room {
        let which = json!({ "seq": next.max(1), "next_by_subj": subject });
        let Some(raw) = kv::read_raw(&client, &stream, which).await? else { break };
        next = raw.seq + 1;
        found.push((raw.seq, read(&client, &stream, REPLAYS, &raw)));
    }
    Ok(found)
}

async fn fetch(
    client: &Client,
    stream: &str,
    topic: &str,
    sequence: u64,
) -> Result<Option<(Message, DeliveryInfo)>> {
    let raw = kv::read_raw(client, stream, json!({ "seq": sequence })).await?;
    Ok(raw.and_then(|raw| read(client, stream, topic, &raw)))
}

fn read(client: &Client, stream: &str, topic: &str, raw: &Raw) -> Option<(Message, DeliveryInfo)> {
    let headers = raw.headers();
    let mut info = about(raw.seq, raw.time);
    let message = if topic == REPLAYS {
        dead_letters::copy(&headers, raw.payload().into(), &mut info)?
    } else {
        let subject = codec::subject(&client.names, &raw.subject)?;
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
