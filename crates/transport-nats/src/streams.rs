//! The streams of a namespace: creates, compares and changes them, a setting only where it differs.

use async_nats::Subject as NatsSubject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smol_str::SmolStr;

use super::api::{Failure, nanos};
use super::client::Client;
use super::config::Config;
use super::durability::{ASYNC, PERSIST_MODE, keeps_promise};
use super::names::Names;
use event_transport::error::Result;
use event_transport::{Action, Change, Difference};

/// First server version with atomic batches.
const BATCHES_SINCE: (u32, u32) = (2, 12);
/// Stream setting that allows atomic batches.
pub(super) const BATCH_SETTING: &str = "allow_atomic";

/// The parts of the server's information on a stream that this library uses.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    /// Distinguishes a stream from an earlier one of the same name.
    #[serde(default)]
    pub(super) created: Option<jiff::Timestamp>,
    pub(super) config: Value,
    pub(super) state: StreamState,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default)]
    pub(super) subjects: Option<std::collections::HashMap<String, u64>>,
}

/// The kind of a stream, which determines its settings.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum Kind<'a> {
    Topic(&'a str),
    Dead,
    State,
    Work,
}

impl Kind<'_> {
    pub(super) fn name(self, names: &Names) -> String {
        match self {
            Self::Topic(topic) => names.stream(topic),
            Self::Dead => names.dead(),
            Self::State => names.state(),
            Self::Work => names.work(),
        }
    }

    /// Returns the settings that this library sets and compares.
    fn settings(self, config: &Config, names: &Names) -> Value {
        let (ns, options) = (&config.namespace, &config.streams);
        let (subjects, retention, max_age, max_bytes, storage) = match self {
            Self::Topic(topic) => (
                vec![names.event(topic), names.event(&format!("{topic}.>"))],
                "limits",
                nanos(options.max_age),
                if options.max_bytes == 0 { -1 } else { options.max_bytes as i64 },
                options.storage,
            ),
            Self::Dead => (
                vec![format!("{ns}.dlq.>")],
                "limits",
                nanos(options.dead_letter_max_age),
                -1,
                options.storage,
            ),
            Self::State => (vec![format!("{ns}.sys.kv.>")], "limits", 0, -1, options.storage),
            Self::Work => (
                vec![format!("{ns}.sys.delay.>"), format!("{ns}.sys.replay.>")],
                "workqueue",
                0,
                -1,
                options.storage,
            ),
        };
        let mut wanted = json!({
            "subjects": subjects,
            "retention": retention,
            "storage": storage.as_str(),
            "num_replicas": options.replicas,
            "max_age": max_age,
            "max_bytes": max_bytes,
            "discard": "old",
            "duplicate_window": nanos(options.dedup_window),
        });
        if matches!(self, Self::State) {
            wanted["max_msgs_per_subject"] = json!(1);
            wanted["discard"] = json!("new");
        }
        wanted
    }
}

/// Returns whether topics should allow atomic batches.
pub(super) fn batches(client: &Client) -> bool {
    client.config.streams.sync_always && client.server.version >= BATCHES_SINCE
}

/// Returns the information on a topic's stream; `None` when there is none.
pub(super) async fn of_topic(client: &Client, topic: &str) -> Result<Option<StreamInfo>> {
    match client.api(&format!("STREAM.INFO.{}", client.names.stream(topic)), &json!({})).await {
        Ok(info) => Ok(Some(info)),
        Err(Failure::Api(error)) if error.err_code == 10059 => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Notifies all connections of new topics, a new work stream or replayed letters.
pub(super) fn tell_news(client: &Client) {
    client.outbound.send_bare(NatsSubject::from(client.names.news()), None, bytes::Bytes::new());
}

/// Creates a missing stream, and compares or updates an existing one, as far as `provision` allows.
pub(super) async fn ensure(client: &Client, kind: Kind<'_>) -> Result<StreamInfo> {
    let name = kind.name(&client.names);
    let provision = client.config.provision;
    let (info, change) = compare(client, kind).await?;
    let Some(change) = change else { return Ok(info.expect("nothing to do about it")) };
    if let Some(info) = &info
        && !provision.compares()
    {
        keeps_promise(&client.config, &name, &info.config)?;
    }
    match change.action {
        Action::Create if provision.creates() => put(client, kind, None).await,
        Action::Create => Err(provision.missing(&change.object)),
        _ if !provision.compares() => Ok(info.expect("it exists")),
        Action::Update if provision == event_transport::Provision::Update => {
            put(client, kind, info.as_ref()).await
        }
        _ => Err(provision.differs(&change.object, &change)),
    }
    .map_err(|error| error.with("stream", name))
}

/// Returns the information on a stream, and the change that it needs to have the wanted settings.
pub(super) async fn compare(client: &Client, kind: Kind<'_>) -> Result<(Option<StreamInfo>, Option<Change>)> {
    let name = kind.name(&client.names);
    let wanted = kind.settings(&client.config, &client.names);
    let info: Option<StreamInfo> = match client.api(&format!("STREAM.INFO.{name}"), &json!({})).await {
        Ok(info) => Some(info),
        Err(Failure::Api(error)) if error.err_code == 10059 => None,
        Err(failure) => return Err(failure.into()),
    };
    let is = info.as_ref().map(|info| &info.config);
    let mut differences = Vec::new();
    for (setting, wanted) in wanted.as_object().expect("an object") {
        let is = is.map(|is| is.get(setting).cloned().unwrap_or_else(|| zero(wanted)));
        if is.as_ref() != Some(wanted) {
            differences.push(Difference::new(
                setting,
                is.map(|is| show(setting, &is)),
                show(setting, wanted),
            ));
        }
    }
    // No server's default, and unknown to servers before 2.12: compared, but never sent.
    if is.and_then(|is| is.get(PERSIST_MODE)).and_then(Value::as_str) == Some(ASYNC) {
        differences.push(Difference::new(PERSIST_MODE, Some(ASYNC.into()), "default"));
    }
    let fixed = |difference: &Difference| {
        matches!(difference.setting.as_str(), "retention" | "storage" | PERSIST_MODE)
    };
    let action = match &info {
        None => Action::Create,
        Some(_) if differences.iter().any(fixed) => Action::Blocked,
        Some(_) => Action::Update,
    };
    let change =
        (!differences.is_empty()).then(|| Change::new(format!("stream {name}"), action, differences));
    Ok((info, change))
}

/// Creates a stream, or changes the settings of this library in it and no others.
pub(super) async fn put(client: &Client, kind: Kind<'_>, is: Option<&StreamInfo>) -> Result<StreamInfo> {
    let name = kind.name(&client.names);
    let mut config = is.map_or_else(|| json!({}), |info| info.config.clone());
    for (setting, wanted) in kind.settings(&client.config, &client.names).as_object().expect("an object") {
        config[setting] = wanted.clone();
    }
    config["name"] = json!(name);
    if matches!(kind, Kind::Topic(_)) && batches(client) {
        config[BATCH_SETTING] = json!(true);
    }
    let verb = if is.is_some() { "UPDATE" } else { "CREATE" };
    match client.api(&format!("STREAM.{verb}.{name}"), &config).await {
        Ok(info) => Ok(info),
        // Another client created it at the same time.
        Err(Failure::Api(error)) if is.is_none() && error.err_code == 10058 => {
            Ok(client.api(&format!("STREAM.INFO.{name}"), &json!({})).await?)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Returns the topics that have a stream.
pub(super) async fn topics(client: &Client) -> Result<Vec<SmolStr>> {
    #[derive(Deserialize)]
    struct Page {
        total: usize,
        #[serde(default)]
        streams: Option<Vec<String>>,
    }
    let mut topics = Vec::new();
    let mut offset = 0;
    loop {
        let body = json!({ "subject": format!("{}.evt.>", client.config.namespace), "offset": offset });
        let page: Page = client.api("STREAM.NAMES", &body).await?;
        let names = page.streams.unwrap_or_default();
        offset += names.len();
        topics.extend(names.iter().filter_map(|name| client.names.topic(name)).map(SmolStr::new));
        if names.is_empty() || offset >= page.total {
            topics.sort();
            topics.dedup();
            return Ok(topics);
        }
    }
}

/// Returns the value of a setting that the server omits.
fn zero(like: &Value) -> Value {
    match like {
        Value::Number(_) => json!(0),
        Value::String(_) => json!(""),
        _ => Value::Null,
    }
}

fn show(setting: &str, value: &Value) -> String {
    match (setting, value) {
        ("max_age" | "duplicate_window", Value::Number(nanos)) => {
            format!("{:?}", std::time::Duration::from_nanos(nanos.as_u64().unwrap_or_default()))
        }
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    }
}
