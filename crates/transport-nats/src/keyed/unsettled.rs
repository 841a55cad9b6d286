//! Counts of the messages that a keyed group has not settled, for its status.

use serde_json::json;

use super::checkpoint::Mark;
use super::ephemeral;
use crate::client::Client;
use crate::group::Record;
use crate::group::consumer;
use crate::{kv, streams};
use event_transport::error::Result;
use event_transport::subject::Group;

/// Returns the number of replayed letters that a keyed group has not settled.
pub(in super::super) async fn unsettled_replays(
    client: &Client,
    group: &Group,
    mark: Option<&Mark>,
) -> Result<u64> {
    let (mut next, mut count) = mark.map_or((1, 0), |mark| (mark.next.max(1), mark.open.len() as u64));
    let (stream, subject) = (client.names.work(), client.names.replayed(group));
    while let Some(raw) =
        kv::read_raw(client, &stream, json!({ "seq": next, "next_by_subj": subject })).await?
    {
        (next, count) = (raw.seq + 1, count + 1);
    }
    Ok(count)
}

/// Returns the number of messages of a topic that a keyed group has not settled, and the first sequence.
pub(in super::super) async fn unsettled(
    client: &Client,
    record: &Record,
    topic: &str,
    mark: Option<&Mark>,
) -> Result<(u64, u64)> {
    let stream = client.names.stream(topic);
    let Some(info) = streams::of_topic(client, topic).await? else { return Ok((0, 0)) };
    // Progress in an earlier stream does not apply to this one.
    let mark = mark.filter(|mark| mark.made.is_none() || mark.made == info.created);
    let open = mark.map_or(0, |mark| mark.open.len() as u64);
    if mark.is_some_and(|mark| mark.next > info.state.last_seq) {
        return Ok((open, mark.map_or(0, Mark::floor)));
    }
    let from = ephemeral::start(record, topic, mark.map(|mark| mark.next));
    let filters = consumer::filters_of(client, record, topic);
    let consumer = ephemeral::create(client, &stream, &from, &filters).await?;
    consumer::delete(client, &stream, &consumer.name).await?;
    let first = mark.filter(|mark| !mark.open.is_empty()).map_or(consumer.first, Mark::floor);
    Ok((open + consumer.pending, first))
}
