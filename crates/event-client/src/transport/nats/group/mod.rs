//! A durable group: its record, and a consumer on each topic that it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smol_str::SmolStr;

use super::api::{Failure, nanos};
use super::connection::Connection;
use super::keyed::Mark;
use super::state::Stored;
use super::topology::{self, Kind, token};
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::{Group, Pattern, Subject};
use crate::transport::topology::compare_group;
use crate::transport::{Mode, Start, Subscribe};

mod consumer;

/// What is written of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) filters: Vec<SmolStr>,
    pub(super) keyed: bool,
    pub(super) lease_ms: u64,
    /// Goes up when the group is moved: its consumers are new ones then.
    #[serde(default)]
    pub(super) epoch: u64,
    /// Where its consumers start.
    pub(super) from: From,
    /// Filters that stand for what was published before they changed, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) past: Vec<Past>,
    /// Where it goes on in topics that it read in another way before: keyed, or not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) starts: BTreeMap<SmolStr, u64>,
    /// Letters are replayed to it.
    #[serde(default)]
    pub(super) replays: bool,
    /// It is going.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
}

/// Where a consumer starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum From {
    /// When this very record was stored.
    Now,
    All,
    Time(Timestamp),
    Sequence(u64),
}

/// Filters of the past.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Past {
    filters: Vec<SmolStr>,
    /// The last message of each topic that they stand for.
    until: BTreeMap<SmolStr, u64>,
}

/// What a consumer says of itself.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) config: Value,
    pub(super) ack_floor: Floor,
    pub(super) delivered: Floor,
    #[serde(default)]
    pub(super) num_ack_pending: u64,
    #[serde(default)]
    pub(super) num_pending: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Floor {
    #[serde(default)]
    pub(super) stream_seq: u64,
}

impl From {
    pub(super) fn new(start: Start) -> Self {
        match start {
            Start::New => Self::Now,
            Start::Earliest => Self::All,
            Start::Time(time) => Self::Time(time),
            Start::Position(position) => Self::Sequence(u64::try_from(position.0).unwrap_or(u64::MAX).max(1)),
        }
    }
}

impl From {
    /// As the server's words.
    pub(super) fn write(&self, config: &mut Value) {
        match self {
            Self::Now => config["deliver_policy"] = json!("new"),
            Self::All => config["deliver_policy"] = json!("all"),
            Self::Time(time) => {
                config["deliver_policy"] = json!("by_start_time");
                config["opt_start_time"] = json!(reachable(*time));
            }
            Self::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence);
            }
        }
    }
}

impl Record {
    fn new(spec: &Subscribe) -> Self {
        Self {
            filters: spec.filters.iter().map(|filter| filter.as_str().into()).collect(),
            keyed: spec.keyed,
            lease_ms: bounds::millis(spec.lease),
            epoch: 0,
            from: From::new(spec.start),
            past: Vec::new(),
            starts: BTreeMap::new(),
            replays: false,
            deleted: false,
        }
    }

    pub(super) fn patterns(&self) -> Vec<Pattern> {
        patterns(&self.filters)
    }

    /// Every pattern that may still match something.
    fn all_patterns(&self) -> Vec<Pattern> {
        let past = self.past.iter().flat_map(|past| patterns(&past.filters));
        self.patterns().into_iter().chain(past).collect()
    }

    pub(super) fn lease(&self) -> Duration {
        bounds::bounded(Duration::from_millis(self.lease_ms))
    }

    /// Whether a wildcard stands for the topic.
    pub(super) fn takes_any_topic(&self) -> bool {
        self.all_patterns().iter().any(|pattern| pattern.topic().is_none())
    }

    /// Where it begins in a topic.
    pub(super) fn start_of(&self, topic: &str) -> From {
        if let Some(sequence) = self.starts.get(topic) {
            return From::Sequence(*sequence);
        }
        let earlier = self.past.iter().flat_map(|past| patterns(&past.filters));
        match self.past.first().and_then(|past| past.until.get(topic)) {
            // It came with later filters.
            Some(until) if !earlier.into_iter().any(|old| reaches(&old, topic)) => From::Sequence(until + 1),
            _ => self.from.clone(),
        }
    }

    /// Whether the message at `sequence` of its topic is for the group.
    pub(super) fn wants(&self, subject: &Subject, sequence: u64) -> bool {
        let filters = (self.past.iter().rev())
            .find(|past| past.until.get(subject.topic()).is_some_and(|until| sequence <= *until))
            .map_or(&self.filters, |past| &past.filters);
        filters.iter().filter_map(|text| Pattern::new(text).ok()).any(|pattern| pattern.matches(subject))
    }
}

fn patterns(filters: &[SmolStr]) -> Vec<Pattern> {
    filters.iter().filter_map(|text| Pattern::new(text).ok()).collect()
}

/// `time` as the server can count it: in nanoseconds since 1970, and with four digits for the year.
fn reachable(time: Timestamp) -> Timestamp {
    time.clamp(Timestamp::UNIX_EPOCH, bounds::time_from_now(bounds::LONGEST).max(Timestamp::UNIX_EPOCH))
}

/// What no consumer of ours is, and none can be changed to: made by somebody else under our name.
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

/// Whether some subject of `topic` may match.
fn reaches(pattern: &Pattern, topic: &str) -> bool {
    pattern.topic().is_none_or(|own| own == topic)
}

impl Connection {
    pub(super) fn group_subject(&self, group: &Group) -> String {
        self.names.record("group", &token(group.as_str()))
    }

    /// The group's record, with its start as a time.
    pub(super) async fn group(&self, group: &Group) -> Result<Option<Stored<Record>>> {
        Ok(self
            .read::<Record>(&self.group_subject(group))
            .await?
            .filter(|stored| !stored.value.deleted)
            .map(dated))
    }

    /// Every group.
    pub(super) async fn all_groups(&self) -> Result<Vec<(Group, Record)>> {
        let prefix = self.names.record("group", "");
        let all = self.read_all::<Record>(&self.names.record("group", ">")).await?;
        Ok(all
            .into_iter()
            .filter(|(_, stored)| !stored.value.deleted)
            .filter_map(|(subject, stored)| {
                let name = subject.strip_prefix(&prefix)?.replace('=', ".");
                Some((Group::new(name).ok()?, dated(stored).value))
            })
            .collect())
    }

    /// Makes the group what `spec` says, as far as `provision` allows, with everything that it needs.
    pub(super) async fn join_group(
        self: &Arc<Self>,
        spec: &Subscribe,
        provision: crate::transport::Provision,
    ) -> Result<Record> {
        let Mode::Group(group) = &spec.mode else { unreachable!("a broadcast has no group") };
        self.ensure_stream(Kind::State).await?;
        let subject = self.group_subject(group);
        let record = loop {
            let last = self.read::<Record>(&subject).await?;
            let sequence = last.as_ref().map_or(0, |stored| stored.sequence);
            let known = last.filter(|stored| !stored.value.deleted).map(dated).map(|stored| stored.value);
            let filters = known.as_ref().map(Record::patterns);
            let is = known.as_ref().zip(filters.as_deref()).map(|(record, filters)| (filters, record.keyed));
            let change = compare_group(spec, is);
            let follows = provision.group(change.as_ref())?;
            let next = match known {
                None => Record::new(spec),
                Some(known) => {
                    let mut next = known.clone();
                    if follows {
                        self.change(group, &mut next, spec).await?;
                    }
                    if provision.creates() {
                        next.lease_ms = bounds::millis(spec.lease);
                    }
                    let same = !follows && next.lease_ms == known.lease_ms;
                    if same {
                        break known;
                    }
                    next
                }
            };
            if self.write(&subject, &next, sequence).await?.is_some() {
                match self.group(group).await? {
                    Some(stored) => break stored.value,
                    None => continue,
                }
            }
        };
        self.provide(group, &record, provision).await?;
        Ok(record)
    }

    /// Gives a record the filters and the order that `spec` asks for.
    async fn change(&self, group: &Group, record: &mut Record, spec: &Subscribe) -> Result<()> {
        if record.keyed != spec.keyed && self.count_members(group).await? > 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "live members of this group keep the order of keys and this one does not, or the other way round",
            )
            .with("group", group)
            .with("keyed", spec.keyed));
        }
        if record.keyed != spec.keyed {
            self.turn(group, record).await?;
        }
        let filters: Vec<SmolStr> = spec.filters.iter().map(|filter| filter.as_str().into()).collect();
        if record.filters != filters {
            let mut until = BTreeMap::new();
            for topic in self.topics().await? {
                let info: super::topology::StreamInfo =
                    self.api(&format!("STREAM.INFO.{}", self.names.stream(&topic)), &json!({})).await?;
                until.insert(topic, info.state.last_seq);
            }
            record.past.insert(0, Past { filters: std::mem::replace(&mut record.filters, filters), until });
            // What is older than this has long gone by.
            record.past.truncate(8);
        }
        Ok(())
    }

    /// Makes a keyed group of one that is not, or the other way round: it goes on at the first message that is not
    /// settled, and what was settled behind it comes again.
    async fn turn(&self, group: &Group, record: &mut Record) -> Result<()> {
        let progress = self.progress(group, record.epoch).await?;
        let mut starts = BTreeMap::new();
        for topic in self.topics_of(record).await? {
            let next = if record.keyed {
                progress.as_ref().and_then(|progress| progress.topics.get(&topic)).map(Mark::floor)
            } else {
                let name = topology::consumer(group, record.epoch);
                let info = self.consumer_info(&self.names.stream(&topic), &name).await?;
                info.map(|info| info.ack_floor.stream_seq + 1)
            };
            starts.extend(next.filter(|next| *next > 0).map(|next| (topic, next)));
        }
        record.starts = starts;
        record.epoch += 1;
        record.keyed = !record.keyed;
        Ok(())
    }

    /// Streams and consumers of everything that the group takes.
    pub(super) async fn provide(
        self: &Arc<Self>,
        group: &Group,
        record: &Record,
        provision: crate::transport::Provision,
    ) -> Result<Vec<SmolStr>> {
        let topics = self.topics_of(record).await?;
        for topic in &topics {
            if !self.topics_seen.is_ready(topic) {
                let batches = self.ensure_topic(topic).await?;
                self.topics_seen.ready(topic, batches);
            }
            self.ensure_consumer(group, record, topic, provision).await?;
        }
        Ok(topics)
    }

    /// Topics that the group takes: those it names, and those that a wildcard finds.
    pub(super) async fn topics_of(&self, record: &Record) -> Result<Vec<SmolStr>> {
        let mut topics: Vec<SmolStr> =
            record.all_patterns().iter().filter_map(Pattern::topic).map(SmolStr::new).collect();
        if record.takes_any_topic() {
            topics.extend(self.topics().await?);
        }
        topics.sort();
        topics.dedup();
        Ok(topics)
    }

    /// Groups with a wildcard for the topic take up a new one.
    pub(super) async fn join_wildcards(self: &Arc<Self>, topic: &str) -> Result<()> {
        for (group, record) in self.all_groups().await? {
            if record.takes_any_topic() {
                self.ensure_consumer(&group, &record, topic, crate::transport::Provision::Create).await?;
            }
        }
        Ok(())
    }
}

/// A start of `now` is when the record was stored.
fn dated(mut stored: Stored<Record>) -> Stored<Record> {
    if let From::Now = stored.value.from {
        stored.value.from = From::Time(stored.time);
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_before_goes_by_the_old_filters() {
        let mut record =
            Record::new(&Subscribe::group(Group::new("g").unwrap(), [Pattern::new("a.new").unwrap()]));
        record.past.push(Past { filters: vec!["a.old".into()], until: BTreeMap::from([("a".into(), 5)]) });
        let wants = |subject: &str, at| record.wants(&Subject::new(subject).unwrap(), at);
        assert!(wants("a.old", 5) && !wants("a.old", 6));
        assert!(!wants("a.new", 5) && wants("a.new", 6));
    }
}
