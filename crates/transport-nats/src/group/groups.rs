//! The groups of a namespace: their records, the streams and consumers that they need, and whether these still exist.
//!
//! A stream, a consumer or the group's record can be deleted, and created again under the same name, while members run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;

use super::consumer;
use super::record::{Record, StartAt};
use crate::client::Client;
use crate::keyed::progress;
use crate::kv::{self, Stored};
use crate::names::{self, token};
use crate::presence::Presence;
use crate::streams::{self, BATCH_SETTING, Kind};
use crate::topics::Topics;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::{Group, Pattern};
use event_transport::topology::compare_group;
use event_transport::{Mode, Provision, Subscribe};

/// Pause before a stream is created again. Servers of 2.9 report a delete before they remove the stream's folder, and
/// would remove the files of the new stream with it.
const REMOVAL: Duration = Duration::from_secs(1);

/// The groups of the namespace, and the topics that this connection knows to exist.
pub(in super::super) struct Groups {
    pub(in super::super) client: Arc<Client>,
    pub(in super::super) presence: Arc<Presence>,
    pub(in super::super) topics: Topics,
}

/// The state of a group on the server.
pub(in super::super) enum Standing {
    There(Record),
    /// Deleted through this library.
    Deleted,
}

impl Groups {
    pub(in super::super) fn new(client: &Arc<Client>, presence: &Arc<Presence>) -> Arc<Self> {
        Arc::new(Self { client: client.clone(), presence: presence.clone(), topics: Topics::default() })
    }

    pub(in super::super) fn group_subject(&self, group: &Group) -> String {
        self.client.names.record("group", &token(group.as_str()))
    }

    /// Returns the group's record, with a start of `now` replaced by a time.
    pub(in super::super) async fn group(&self, group: &Group) -> Result<Option<Stored<Record>>> {
        let stored = kv::read::<Record>(&self.client, &self.group_subject(group)).await?;
        Ok(stored.filter(|stored| !stored.value.deleted).map(dated))
    }

    /// Returns every group with its record.
    pub(in super::super) async fn all_groups(&self) -> Result<Vec<(Group, Record)>> {
        let prefix = self.client.names.record("group", "");
        let all = kv::read_all::<Record>(&self.client, &self.client.names.record("group", ">")).await?;
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
    pub(in super::super) async fn join_group(
        &self,
        spec: &Subscribe,
        provision: Provision,
    ) -> Result<Record> {
        let Mode::Group(group) = &spec.mode else { unreachable!("a broadcast has no group") };
        streams::ensure(&self.client, Kind::State).await?;
        let subject = self.group_subject(group);
        let record = loop {
            let last = kv::read::<Record>(&self.client, &subject).await?;
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
            if kv::write(&self.client, &subject, &next, sequence).await?.is_some() {
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
        if record.keyed != spec.keyed && self.presence.count(group).await? > 0 {
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
            for topic in streams::topics(&self.client).await? {
                let Some(info) = streams::of_topic(&self.client, &topic).await? else { continue };
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
    pub(in super::super) async fn provide(
        &self,
        group: &Group,
        record: Record,
        provision: Provision,
    ) -> Result<Record> {
        let topics = self.topics_of(&record).await?;
        for topic in &topics {
            self.stand(topic).await?;
        }
        let record = self.identify(group, record).await?;
        for topic in &topics {
            consumer::ensure(&self.client, group, &record, topic, None, provision).await?;
        }
        Ok(record)
    }

    /// Returns the topics that the group takes: those that its filters name, and all topics when it has a wildcard.
    pub(in super::super) async fn topics_of(&self, record: &Record) -> Result<Vec<SmolStr>> {
        let mut topics: Vec<SmolStr> =
            record.all_patterns().iter().filter_map(Pattern::topic).map(SmolStr::new).collect();
        if record.takes_any_topic() {
            topics.extend(streams::topics(&self.client).await?);
        }
        topics.sort();
        topics.dedup();
        Ok(topics)
    }

    /// Creates a consumer on a new topic for every group with a wildcard in place of the topic.
    pub(in super::super) async fn join_wildcards(&self, topic: &str) -> Result<()> {
        for (group, record) in self.all_groups().await? {
            if record.takes_any_topic() {
                consumer::ensure(&self.client, &group, &record, topic, None, Provision::Create).await?;
            }
        }
        Ok(())
    }

    /// Ensures that a topic's stream exists, and adds it to groups with a wildcard. Returns whether it accepts
    /// batches.
    pub(in super::super) async fn ensure_topic(&self, topic: &str) -> Result<bool> {
        let there = streams::compare(&self.client, Kind::Topic(topic)).await?.0.is_some();
        let stream = streams::ensure(&self.client, Kind::Topic(topic)).await?;
        if !there {
            self.join_wildcards(topic).await?;
            streams::tell_news(&self.client);
        }
        Ok(streams::batches(&self.client) && stream.config[BATCH_SETTING] == true)
    }

    /// Returns the group's state. A record that was removed by other means is written again as `known`, if
    /// `provision` allows.
    pub(in super::super) async fn standing(&self, group: &Group, known: &Record) -> Result<Standing> {
        let subject = self.group_subject(group);
        loop {
            match kv::read::<Record>(&self.client, &subject).await? {
                Some(stored) if stored.value.deleted => return Ok(Standing::Deleted),
                Some(stored) => return Ok(Standing::There(dated(stored).value)),
                None => {}
            }
            let provision = self.client.config.provision;
            if !provision.creates() {
                return Err(provision.missing(format!("group {group}")));
            }
            tracing::error!(
                %group,
                "this group's record is missing on the server; it was deleted, or the server was restarted without its storage; it is written again"
            );
            tokio::time::sleep(REMOVAL).await;
            streams::ensure(&self.client, Kind::State).await?;
            kv::write(&self.client, &subject, known, 0).await?;
            self.presence.announce().await?;
        }
    }

    /// Returns the creation time of the topic's stream. A missing stream is created, if `provision` allows.
    pub(in super::super) async fn stand(&self, topic: &str) -> Result<Option<Timestamp>> {
        if self.topics.is_ready(topic) {
            if let Some(info) = streams::of_topic(&self.client, topic).await? {
                return Ok(info.created);
            }
            tokio::time::sleep(REMOVAL).await;
        }
        let batches = self.ensure_topic(topic).await?;
        self.topics.ready(topic, batches);
        Ok(streams::of_topic(&self.client, topic).await?.and_then(|info| info.created))
    }

    /// Returns the record, rewritten when its sequences refer to streams that no longer exist.
    pub(in super::super) async fn identify(&self, group: &Group, record: Record) -> Result<Record> {
        let mut created = Vec::new();
        for topic in self.topics_of(&record).await? {
            if record.counts_in(&topic)
                && let Some(info) = streams::of_topic(&self.client, &topic).await?
            {
                created.push((topic, info.created));
            }
        }
        let recognise = |record: &mut Record| {
            created.iter().fold(false, |changed, (topic, made)| record.recognise(topic, *made) | changed)
        };
        if !recognise(&mut record.clone()) {
            return Ok(record);
        }
        loop {
            let Some(stored) = self.group(group).await? else { return Ok(record) };
            let mut next = stored.value;
            if !recognise(&mut next)
                || kv::write(&self.client, &self.group_subject(group), &next, stored.sequence)
                    .await?
                    .is_some()
            {
                return Ok(next);
            }
        }
    }

    /// Returns the last settled sequence of each topic, and the number of filter changes that the leader knew of
    /// then.
    pub(in super::super) async fn floors(
        &self,
        group: &Group,
        record: &Record,
    ) -> Result<(BTreeMap<SmolStr, u64>, u64)> {
        let progress = if record.keyed { progress(&self.client, group, record.epoch).await? } else { None };
        let mut floors = BTreeMap::new();
        for topic in self.topics_of(record).await? {
            let floor = if record.keyed {
                let mark = progress.as_ref().and_then(|progress| progress.topics.get(&topic));
                mark.map(|mark| mark.floor().saturating_sub(1))
            } else {
                let name = names::consumer(group, record.epoch);
                let info = consumer::info(&self.client, &self.client.names.stream(&topic), &name).await?;
                info.map(|info| info.ack_floor.stream_seq)
            };
            floors.extend(floor.filter(|floor| *floor > 0).map(|floor| (topic, floor)));
        }
        let known = progress.map_or(if record.keyed { 0 } else { u64::MAX }, |progress| progress.changes);
        Ok((floors, known))
    }
}

/// Replaces a start of `now` by the time at which the record was stored.
fn dated(mut stored: Stored<Record>) -> Stored<Record> {
    if let StartAt::Now = stored.value.from {
        stored.value.from = StartAt::Time(stored.time);
    }
    stored
}
