//! Ephemeral consumers without acknowledgements, through which a keyed group reads its topics.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::api::nanos;
use crate::client::Client;
use crate::group::{Record, StartAt};
use event_transport::error::Result;

/// The server deletes an ephemeral consumer that receives no pull for this time.
const UNUSED: Duration = Duration::from_secs(300);

/// A consumer that the server has just created.
pub(super) struct EphemeralConsumer {
    pub(super) name: String,
    /// Sequence of the first message that it may deliver.
    pub(super) first: u64,
    /// Number of messages that it has to deliver.
    pub(super) pending: u64,
}

/// Returns the start of a topic's consumer: `next`, or the group's own start when it has not read the topic.
pub(super) fn start(record: &Record, topic: &str, next: Option<u64>) -> StartAt {
    next.filter(|next| *next > 0).map_or_else(|| record.start_of(topic), StartAt::Sequence)
}

/// Creates an ephemeral consumer in the server's memory, without acknowledgements.
pub(super) async fn create(
    client: &Client,
    stream: &str,
    from: &StartAt,
    filters: &[String],
) -> Result<EphemeralConsumer> {
    #[derive(Deserialize)]
    struct Created {
        name: String,
        delivered: Delivered,
        #[serde(default)]
        num_pending: u64,
    }
    #[derive(Deserialize)]
    struct Delivered {
        #[serde(default)]
        stream_seq: u64,
    }
    let mut config = json!({
        "ack_policy": "none",
        "replay_policy": "instant",
        "mem_storage": true,
        "num_replicas": 1,
        "inactive_threshold": nanos(UNUSED),
    });
    match filters {
        [] => {}
        [one] => config["filter_subject"] = json!(one),
        several => config["filter_subjects"] = json!(several),
    }
    from.write(&mut config);
    let body = json!({ "stream_name": stream, "config": config });
    let Created { name, delivered, num_pending } =
        client.api(&format!("CONSUMER.CREATE.{stream}"), &body).await?;
    Ok(EphemeralConsumer { name, first: delivered.stream_seq + 1, pending: num_pending })
}
