//! The durable consumers of groups: creates them where they are missing, and updates them only where they differ.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::record::{Record, StartAt, reaches};
use crate::api::{Failure, nanos};
use crate::client::Client;
use crate::names;
use event_transport::Provision;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;

/// The server's information on a consumer.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct ConsumerInfo {
    #[serde(default)]
    pub(in super::super) created: Option<Timestamp>,
    pub(in super::super) config: Value,
    pub(in super::super) ack_floor: Floor,
    pub(in super::super) delivered: Floor,
    #[serde(default)]
    pub(in super::super) num_ack_pending: u64,
    #[serde(default)]
    pub(in super::super) num_pending: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(in super::super) struct Floor {
    #[serde(default)]
    pub(in super::super) stream_seq: u64,
}

/// Returns a difference that no update can remove: another program created the consumer under this library's name.
fn foreign(config: &Value) -> Option<String> {
    let text = |setting: &str| config.get(setting).and_then(Value::as_str).unwrap_or_default();
    match (text("ack_policy"), text("deliver_subject")) {
        ("explicit", "") => None,
        ("explicit", subject) => Some(format!("deliver_subject is {subject}, must be none")),
        (policy, _) => {
            Some(format!("ack_policy is {policy}, must be explicit; an operator has to delete it"))
        }
    }
}

/// A durable pull consumer, as this library wants it.
#[derive(Clone, Copy)]
pub(in super::super) struct Durable<'a> {
    pub(in super::super) stream: &'a str,
    pub(in super::super) name: &'a str,
    pub(in super::super) filters: &'a [String],
    /// Start of a new consumer.
    pub(in super::super) from: &'a StartAt,
    pub(in super::super) lease: Duration,
    /// Largest number of unsettled messages; -1 means any.
    pub(in super::super) most_pending: i64,
}

/// Returns the largest number of unsettled messages of a group in one topic.
pub(in super::super) fn most_pending(client: &Client) -> i64 {
    i64::try_from(client.config.max_unsettled).unwrap_or(i64::MAX)
}

/// Returns the server's filters of a topic for all messages that the group may want. No filter means the whole
/// topic.
pub(in super::super) fn filters_of(client: &Client, record: &Record, topic: &str) -> Vec<String> {
    let all = record.all_patterns();
    let reaching = all.iter().filter(|pattern| reaches(pattern, topic));
    names::cover(reaching, topic, client.server.at_least(2, 10))
        .iter()
        .map(|filter| client.names.event(filter))
        .collect()
}

/// Creates or updates the group's consumer on a topic. A new one starts at `from`, or at the record's start.
/// Returns `None` for a keyed group, whose leader reads the stream without a consumer, see `keyed/`.
pub(in super::super) async fn ensure(
    client: &Client,
    group: &Group,
    record: &Record,
    topic: &str,
    from: Option<StartAt>,
    provision: Provision,
) -> Result<Option<ConsumerInfo>> {
    if record.keyed {
        return Ok(None);
    }
    let stream = client.names.stream(topic);
    let name = names::consumer(group, record.epoch);
    let filters = filters_of(client, record, topic);
    let from = from.unwrap_or_else(|| record.start_of(topic));
    let durable = Durable {
        stream: &stream,
        name: &name,
        filters: &filters,
        from: &from,
        lease: record.lease(),
        most_pending: most_pending(client),
    };
    put(client, durable, provision).await.map(Some)
}

/// Creates or updates a durable pull consumer.
pub(in super::super) async fn put(
    client: &Client,
    durable: Durable<'_>,
    provision: Provision,
) -> Result<ConsumerInfo> {
    let Durable { stream, name, filters, from, lease, most_pending } = durable;
    let mut wanted = json!({
        "ack_wait": nanos(lease),
        "max_ack_pending": most_pending,
    });
    let (mut filter, filters) = match filters {
        [] => (String::new(), Value::Null),
        [one] => (one.clone(), Value::Null),
        several => (String::new(), json!(several)),
    };
    let object = format!("consumer {name} of stream {stream}");
    let is = self::info(client, stream, name).await?;
    // Servers of 2.9 accept a wildcard in the place of a literal filter, but then match nothing: a consumer whose
    // filter changes takes its whole topic there.
    if let Some(info) = &is
        && !client.server.at_least(2, 10)
        && info.config.get("filter_subject").and_then(Value::as_str).unwrap_or_default() != filter
    {
        filter.clear();
    }
    let (mut config, new) = match is {
        Some(info) => {
            if provision.compares() {
                foreign(&info.config)
                    .map_or(Ok(()), |change| Err(provision.differs(&object, change)))
                    .map_err(|error| error.with("consumer", name).with("stream", stream))?;
            }
            let same =
                |setting: &str, wanted: &Value| info.config.get(setting).unwrap_or(&Value::Null) == wanted;
            let is_filter = info.config.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
            if same("ack_wait", &wanted["ack_wait"])
                && same("max_ack_pending", &wanted["max_ack_pending"])
                && is_filter == filter
                && same("filter_subjects", &filters)
            {
                return Ok(info);
            }
            if !provision.creates() {
                return Ok(info);
            }
            (info.config, false)
        }
        None if !provision.creates() => return Err(provision.missing(&object)),
        None => {
            let mut config = json!({
                "durable_name": name,
                "ack_policy": "explicit",
                "replay_policy": "instant",
                "max_deliver": -1,
                "max_waiting": 512,
            });
            // Servers of 2.9 refuse every change of a consumer that starts at a time.
            match from {
                StartAt::Time(time) => {
                    StartAt::Sequence(sequence_at(client, stream, *time).await?).write(&mut config)
                }
                other => other.write(&mut config),
            }
            (config, true)
        }
    };
    wanted["filter_subject"] = json!(filter);
    wanted["filter_subjects"] = filters.clone();
    for (setting, value) in wanted.as_object().expect("an object") {
        config[setting] = value.clone();
    }
    let object = config.as_object_mut().expect("an object");
    object.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
    let body = json!({ "stream_name": stream, "config": config });
    let info: ConsumerInfo =
        match client.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &body).await {
            Ok(info) => info,
            // Another client created the consumer at the same time, with the same intention.
            Err(Failure::Api(error)) if new && matches!(error.err_code, 10013 | 10148) => {
                return info(client, stream, name).await?.ok_or_else(|| Error::from(error));
            }
            Err(failure) => return Err(Error::from(failure).with("consumer", name).with("stream", stream)),
        };
    // An old server accepts a setting that it does not know, and ignores it.
    if !filters.is_null() && info.config.get("filter_subjects").is_none_or(Value::is_null) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the server ignores several filters of one consumer; NATS 2.10 or newer is needed on every server of the cluster",
        )
        .with("consumer", name));
    }
    Ok(info)
}

/// Returns the sequence of the first message stored at or after `time`, or the next one, from an ephemeral
/// consumer.
pub(in super::super) async fn sequence_at(client: &Client, stream: &str, time: Timestamp) -> Result<u64> {
    #[derive(Deserialize)]
    struct EphemeralConsumer {
        name: String,
        delivered: Floor,
    }
    let mut config = json!({
        "ack_policy": "none",
        "mem_storage": true,
        "num_replicas": 1,
        "inactive_threshold": nanos(Duration::from_secs(5)),
    });
    StartAt::Time(time).write(&mut config);
    let body = json!({ "stream_name": stream, "config": config });
    let ephemeral: EphemeralConsumer = client.api(&format!("CONSUMER.CREATE.{stream}"), &body).await?;
    delete(client, stream, &ephemeral.name).await?;
    Ok(ephemeral.delivered.stream_seq + 1)
}

/// Returns the server's information on a consumer; `None` when there is none.
pub(in super::super) async fn info(
    client: &Client,
    stream: &str,
    name: &str,
) -> Result<Option<ConsumerInfo>> {
    match client.api(&format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
        Ok(info) => Ok(Some(info)),
        Err(Failure::Api(error)) if matches!(error.err_code, 10014 | 10059) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

pub(in super::super) async fn delete(client: &Client, stream: &str, name: &str) -> Result<()> {
    match client.api::<Value>(&format!("CONSUMER.DELETE.{stream}.{name}"), &json!({})).await {
        Ok(_) => Ok(()),
        Err(Failure::Api(error)) if matches!(error.err_code, 10014 | 10059) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}
