//! Counts of the messages that a keyed group has not settled, for its status.

use serde_json::json;

use super::checkpoint::Mark;
use super::ephemeral;
use crate::error::Result;
use crate::subject::Group;
use crate::transport::nats::connection::Connection;
use crate::transport::nats::group::Record;

/// Returns the number of replayed letters that a keyed group has not settled.
pub(in super::super) async fn unsettled_replays(
    connection: &Connection,
    group: &Group,
    mark: Option<&Mark>,
) -> Result<u64> {
    let (mut next, mut count) = mark.map_or((1, 0), |mark| (mark.next.max(1), mark.open.len() as u64));
    let (stream, subject) = (connection.names.work(), connection.names.replayed(group));
    while let Some(raw) =
        connection.read_raw(&stream, json!({ "seq": next, "next_by_subj": subject })).await?
    {
        (next, count) = (raw.seq + 1, count + 1);
    }
    Ok(count)
}

/// Returns the number of messages of a topic that a keyed group has not settled, and the first sequence.
pub(in super::super) async fn unsettled(
    connection: &Connection,
    record: &Record,
    topic: &str,
    mark: Option<&Mark>,
) -> Result<(u64, u64)> {
    let stream = connection.names.stream(topic);
    let Some(info) = connection.stream_of(topic).await? else { return Ok((0, 0)) };
    // Progress in an earlier stream does not apply to this one.
    let mark = mark.filter(|mark| mark.made.is_none() || mark.made == info.created);
    let open = mark.map_or(0, |mark| mark.open.len() as u64);
    if mark.is_some_and(|mark| mark.next > info.state.last_seq) {
        return Ok((open, mark.map_or(0, Mark::floor)));
    }
    let from = ephemeral::start(record, topic, mark.map(|mark| mark.next));
    let filters = connection.filters_of(record, topic);
    let consumer = ephemeral::create(connection, &stream, &from, &filters).await?;
    connection.delete_consumer(&stream, &consumer.name).await?;
    let first = mark.filter(|mark| !mark.open.is_empty()).map_or(consumer.first, Mark::floor);
    Ok((open + consumer.pending, first))
}
