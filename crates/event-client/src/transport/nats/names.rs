//! Names of subjects, streams and consumers; and the streams: created, compared, changed only where they differ.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smol_str::{SmolStr, format_smolstr};

use super::api::{Failure, nanos};
use super::config::Config;
use super::connection::Connection;
use super::durability::{ASYNC, PERSIST_MODE};
use crate::error::Result;
use crate::subject::{Group, Pattern, Subject};
use crate::transport::{Action, Change, Difference};

/// Names of all server objects of one namespace. No name contains a dot where NATS forbids it.
#[derive(Clone, Debug)]
pub(super) struct Names {
    ns: SmolStr,
    /// `shop.evt.`
    events: SmolStr,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self { ns: namespace.into(), events: format_smolstr!("{namespace}.evt.") }
    }

    pub(super) fn stream(&self, topic: &str) -> String {
        format!("EVT_{}_{topic}", self.ns)
    }

    pub(super) fn topic<'a>(&self, stream: &'a str) -> Option<&'a str> {
        stream.strip_prefix("EVT_")?.strip_prefix(self.ns.as_str())?.strip_prefix('_')
    }

    /// The stream of dead letters.
    pub(super) fn dead(&self) -> String {
        format!("DLQ_{}", self.ns)
    }

    /// The stream of the latest records of groups, attempts, connections and leaders.
    pub(super) fn state(&self) -> String {
        format!("SYS_{}", self.ns)
    }

    /// The stream of messages that are delayed, or replayed to one group.
    pub(super) fn work(&self) -> String {
        format!("WRK_{}", self.ns)
    }

    pub(super) fn event(&self, subject: &str) -> String {
        let mut name = String::with_capacity(self.events.len() + subject.len());
        name.push_str(&self.events);
        name.push_str(subject);
        name
    }

    /// Returns the event subject of a name made by [`Names::event`].
    pub(super) fn event_subject<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.events.as_str())
    }

    pub(super) fn request(&self, subject: &Subject) -> String {
        format!("{}.rpc.{subject}", self.ns)
    }

    pub(super) fn dead_letter(&self, group: &Group, topic: &str) -> String {
        format!("{}.dlq.{group}.{topic}", self.ns)
    }

    pub(super) fn dead_letters_of(&self, group: &Group) -> String {
        format!("{}.dlq.{group}.*", self.ns)
    }

    /// Subject of a record in the state stream: its `kind` and the object that it describes.
    pub(super) fn record(&self, kind: &str, of: &str) -> String {
        format!("{}.sys.kv.{kind}.{of}", self.ns)
    }

    pub(super) fn delayed(&self, id: &str) -> String {
        format!("{}.sys.delay.{id}", self.ns)
    }

    pub(super) fn replayed(&self, group: &Group) -> String {
        format!("{}.sys.replay.{}", self.ns, token(group.as_str()))
    }

    /// Subject on which a connection answers requests for the status of its members.
    pub(super) fn presence(&self, connection: &str) -> String {
        format!("{}.sys.conn.{connection}", self.ns)
    }

    /// Subject of the notification that a keyed group has lost its leader.
    pub(super) fn led(&self, group: &Group) -> String {
        format!("{}.sys.led.{}", self.ns, token(group.as_str()))
    }

    /// Subject of messages from callers to a connection, or to `all`: a caller left, has room, or requests a status.
    pub(super) fn calls(&self, call: &str) -> String {
        format!("{}.sys.call.{call}", self.ns)
    }

    /// Subject of the notification of new topics, a new work stream or replayed letters.
    pub(super) fn news(&self) -> String {
        format!("{}.sys.news", self.ns)
    }
}

/// Converts a name to one token: dots become `=`, which no name of this library contains.
pub(super) fn token(name: &str) -> String {
    name.replace('.', "=")
}

/// Returns the server's name of a group's consumer. It is a new one each time the group is moved.
pub(super) fn consumer(group: &Group, epoch: u64) -> String {
    let name = token(group.as_str());
    if epoch == 0 { name } else { format!("{name}@{epoch}") }
}

/// Returns the narrowest filters of `topic` that cover all `patterns`; no filter means everything. `several`: servers
/// before 2.10 accept only one, and report no error. Filters of one consumer may not overlap.
pub(super) fn cover<'a>(
    patterns: impl IntoIterator<Item = &'a Pattern>,
    topic: &str,
    several: bool,
) -> Vec<String> {
    let mut left: Vec<&str> = Vec::new();
    for pattern in patterns {
        let pattern = pattern.as_str();
        if left.iter().any(|other| covers(other, pattern)) {
            continue;
        }
        left.retain(|other| !covers(pattern, other));
        left.push(pattern);
    }
    let within = |pattern: &&str| match pattern.split_once('.') {
        Some((_, rest)) => format!("{topic}.{rest}"),
        None => topic.to_owned(),
    };
    match left.as_slice() {
        [">"] => Vec::new(),
        [one] => vec![within(one)],
        many if several && many.iter().all(|pattern| !pattern.contains(['*', '>'])) => {
            many.iter().map(within).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns whether `wide` matches everything that `narrow` matches.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('.'), narrow.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

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
        let ns = &config.namespace;
        let (subjects, retention, max_age, max_bytes, storage) = match self {
            Self::Topic(topic) => (
                vec![names.event(topic), names.event(&format!("{topic}.>"))],
                "limits",
                nanos(config.max_age),
                if config.max_bytes == 0 { -1 } else { config.max_bytes as i64 },
                config.storage,
            ),
            Self::Dead => {
                (vec![format!("{ns}.dlq.>")], "limits", nanos(config.dead_letter_max_age), -1, config.storage)
            }
            Self::State => (vec![format!("{ns}.sys.kv.>")], "limits", 0, -1, config.storage),
            Self::Work => (
                vec![format!("{ns}.sys.delay.>"), format!("{ns}.sys.replay.>")],
                "workqueue",
                0,
                -1,
                config.storage,
            ),
        };
        let mut wanted = json!({
            "subjects": subjects,
            "retention": retention,
            "storage": storage.as_str(),
            "num_replicas": config.replicas,
            "max_age": max_age,
            "max_bytes": max_bytes,
            "discard": "old",
            "duplicate_window": nanos(config.dedup_window),
        });
        if matches!(self, Self::State) {
            wanted["max_msgs_per_subject"] = json!(1);
            wanted["discard"] = json!("new");
        }
        wanted
    }
}

impl Connection {
    /// Creates a missing stream, and compares or updates an existing one, as far as `provision` allows.
    pub(super) async fn ensure_stream(&self, kind: Kind<'_>) -> Result<StreamInfo> {
        let name = kind.name(&self.names);
        let provision = self.config.provision;
        let (info, change) = self.compare_stream(kind).await?;
        let Some(change) = change else { return Ok(info.expect("nothing to do about it")) };
        if let Some(info) = &info
            && !provision.compares()
        {
            self.keeps_promise(&name, info)?;
        }
        match change.action {
            Action::Create if provision.creates() => self.put_stream(kind, None).await,
            Action::Create => Err(provision.missing(&change.object)),
            _ if !provision.compares() => Ok(info.expect("it exists")),
            Action::Update if provision == crate::transport::Provision::Update => {
                self.put_stream(kind, info.as_ref()).await
            }
            _ => Err(provision.differs(&change.object, &change)),
        }
        .map_err(|error| error.with("stream", name))
    }

    /// Returns the information on a stream, and the change that it needs to have the wanted settings.
    pub(super) async fn compare_stream(
        &self,
        kind: Kind<'_>,
    ) -> Result<(Option<StreamInfo>, Option<Change>)> {
        let name = kind.name(&self.names);
        let wanted = kind.settings(&self.config, &self.names);
        let info: Option<StreamInfo> = match self.api(&format!("STREAM.INFO.{name}"), &json!({})).await {
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
    pub(super) async fn put_stream(&self, kind: Kind<'_>, is: Option<&StreamInfo>) -> Result<StreamInfo> {
        let name = kind.name(&self.names);
        let mut config = is.map_or_else(|| json!({}), |info| info.config.clone());
        for (setting, wanted) in kind.settings(&self.config, &self.names).as_object().expect("an object") {
            config[setting] = wanted.clone();
        }
        config["name"] = json!(name);
        if matches!(kind, Kind::Topic(_)) && self.batches() {
            config[super::batch::SETTING] = json!(true);
        }
        let verb = if is.is_some() { "UPDATE" } else { "CREATE" };
        match self.api(&format!("STREAM.{verb}.{name}"), &config).await {
            Ok(info) => Ok(info),
            // Another client created it at the same time.
            Err(Failure::Api(error)) if is.is_none() && error.err_code == 10058 => {
                Ok(self.api(&format!("STREAM.INFO.{name}"), &json!({})).await?)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Returns the topics that have a stream.
    pub(super) async fn topics(&self) -> Result<Vec<SmolStr>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let mut topics = Vec::new();
        let mut offset = 0;
        loop {
            let body = json!({ "subject": format!("{}.evt.>", self.config.namespace), "offset": offset });
            let page: Page = self.api("STREAM.NAMES", &body).await?;
            let names = page.streams.unwrap_or_default();
            offset += names.len();
            topics.extend(names.iter().filter_map(|name| self.names.topic(name)).map(SmolStr::new));
            if names.is_empty() || offset >= page.total {
                topics.sort();
                topics.dedup();
                return Ok(topics);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<_> = patterns.iter().map(|text| Pattern::new(text).unwrap()).collect();
        cover(&patterns, "orders", true)
    }

    #[test]
    fn one_filter_where_one_will_do() {
        assert_eq!(covered(&["orders.placed.v1"]), ["orders.placed.v1"]);
        assert_eq!(covered(&["orders.>", "orders.placed.v1", "orders.*.v1"]), ["orders.>"]);
        assert_eq!(covered(&["*.placed.>"]), ["orders.placed.>"]);
        assert_eq!(covered(&["*"]), ["orders"]);
        assert!(covered(&[">"]).is_empty());
        assert_eq!(covered(&["orders.a.v1", "orders.b.v1"]), ["orders.a.v1", "orders.b.v1"]);
        assert!(covered(&["orders.*.v1", "orders.a.>"]).is_empty(), "they overlap");
    }

    #[test]
    fn names_come_back() {
        let names = Names::new("shop");
        assert_eq!(names.topic(&names.stream("orders_eu")), Some("orders_eu"));
        assert_eq!(names.topic("EVT_shop-2_orders"), None);
        assert_eq!(names.event_subject(&names.event("orders.placed")), Some("orders.placed"));
        assert_eq!(consumer(&Group::new("billing.orders").unwrap(), 2), "billing=orders@2");
    }
}
