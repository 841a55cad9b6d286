//! A durable group: its record, and a consumer on each topic that it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use smol_str::SmolStr;

use super::api::{Failure, nanos};
use super::connection::Connection;
use super::kv::Stored;
use super::names::{self, token};
use super::streams::Kind;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::{Group, Pattern};
use crate::transport::topology::compare_group;
use crate::transport::{Mode, Subscribe};

mod consumer;
mod record;
mod standing;

use record::reaches;
pub(super) use record::{Record, StartAt};
pub(super) use standing::Standing;

/// The server's information on a consumer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    #[serde(default)]
    pub(super) created: Option<Timestamp>,
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

impl Connection {
    pub(super) fn group_subject(&self, group: &Group) -> String {
        self.names.record("group", &token(group.as_str()))
    }

    /// Returns the group's record, with a start of `now` replaced by a time.
    pub(super) async fn group(&self, group: &Group) -> Result<Option<Stored<Record>>> {
        Ok(self
            .read::<Record>(&self.group_subject(group))
            .await?
            .filter(|stored| !stored.value.deleted)
            .map(dated))
    }

    /// Returns every group with its record.
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

    /// Creates the group, or changes it to match `spec`, as far as `provision` allows, with its streams and
    /// consumers.
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
        self.provide(group, record, provision).await
    }

    /// Changes a record to the filters and the key order of `spec`.
    async fn change(&self, group: &Group, record: &mut Record, spec: &Subscribe) -> Result<()> {
        if record.keyed != spec.keyed && self.count_members(group).await? > 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "this subscription and the live members of its group differ in `keyed`; use the same value for all",
            )
            .with("group", group)
            .with("keyed", spec.keyed));
        }
        if record.keyed != spec.keyed {
            self.turn(group, record).await?;
        }
        let filters: Vec<SmolStr> = spec.filters.iter().map(|filter| filter.as_str().into()).collect();
        if record.filters != filters {
            let (mut until, mut created) = (BTreeMap::new(), Vec::new());
            for topic in self.topics().await? {
                let Some(info) = self.stream_of(&topic).await? else { continue };
                record.recognise(&topic, info.created);
                until.insert(topic.clone(), info.state.last_seq);
                created.push((topic, info.created));
            }
            let (floors, known) = self.floors(group, record).await?;
            record.forget(&floors, known);
            record.follow(filters, until);
            for (topic, made) in created {
                record.recognise(&topic, made);
            }
        }
        Ok(())
    }

    /// Switches a group between keyed and not keyed. It continues at the first unsettled message, so messages after
    /// it that were already settled are delivered again.
    async fn turn(&self, group: &Group, record: &mut Record) -> Result<()> {
        let (floors, _) = self.floors(group, record).await?;
        record.starts = floors.into_iter().map(|(topic, floor)| (topic, floor + 1)).collect();
        record.epoch += 1;
        record.keyed = !record.keyed;
        Ok(())
    }

    /// Creates the streams and consumers of all topics that the group takes.
    pub(super) async fn provide(
        self: &Arc<Self>,
        group: &Group,
        record: Record,
        provision: crate::transport::Provision,
    ) -> Result<Record> {
        let topics = self.topics_of(&record).await?;
        for topic in &topics {
            self.stand(topic).await?;
        }
        let record = self.identify(group, record).await?;
        for topic in &topics {
            self.ensure_consumer(group, &record, topic, None, provision).await?;
        }
        Ok(record)
    }

    /// Returns the topics that the group takes: those that its filters name, and all topics when it has a wildcard.
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

    /// Creates a consumer on a new topic for every group with a wildcard in place of the topic.
    pub(super) async fn join_wildcards(self: &Arc<Self>, topic: &str) -> Result<()> {
        for (group, record) in self.all_groups().await? {
            if record.takes_any_topic() {
                self.ensure_consumer(&group, &record, topic, None, crate::transport::Provision::Create)
                    .await?;
            }
        }
        Ok(())
    }
}

/// Replaces a start of `now` by the time at which the record was stored.
fn dated(mut stored: Stored<Record>) -> Stored<Record> {
    if let StartAt::Now = stored.value.from {
        stored.value.from = StartAt::Time(stored.time);
    }
    stored
}
