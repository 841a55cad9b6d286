//! Operator functions over NATS: dead letters, groups and their lag, and the difference between topology and server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use smol_str::SmolStr;

use super::attempts::{self, Attempt};
use super::client::Client;
use super::dead_letters::DeadLetters;
use super::diagnose::diagnose;
use super::error::closed;
use super::group::{Groups, Record, StartAt, consumer};
use super::keyed::{self, Mark, REPLAYS};
use super::kv;
use super::names::{self, token};
use super::presence::MemberStatus;
use super::source::Source;
use super::streams::{self, Kind};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;
use event_transport::topology::compare_group;
use event_transport::{
    Action, Admin, Change, DeadLetter, DeadLetterFilter, Difference, Finding, GroupStatus, Mode, Provision,
    Start, Topology,
};

fn unknown(group: &Group) -> Error {
    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
}

/// The operator functions of one connection.
pub(super) struct Operator {
    client: Arc<Client>,
    groups: Arc<Groups>,
    dead_letters: Arc<DeadLetters>,
}

impl Operator {
    pub(super) fn new(dead_letters: &Arc<DeadLetters>) -> Self {
        let DeadLetters { client, groups, .. } = &**dead_letters;
        Self { client: client.clone(), groups: groups.clone(), dead_letters: dead_letters.clone() }
    }

    fn admin_step<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        step: impl Future<Output = Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            if self.client.outbound.is_closing() {
                return Err(closed().during(operation));
            }
            step.await.map_err(|error| error.during(operation))
        })
    }

    async fn status(
        &self,
        group: Group,
        record: &Record,
        all_members: &[MemberStatus],
    ) -> Result<GroupStatus> {
        let mut status = GroupStatus::new(group.clone(), record.patterns());
        let (mut unsettled, now) = (0, Timestamp::now().as_millisecond());
        let mut oldest: Option<Timestamp> = None;
        let name = names::consumer(&group, record.epoch);
        let topics = self.groups.topics_of(record).await?;
        if record.keyed {
            (unsettled, oldest) = self.keyed_status(&mut status, record, &topics, now).await?;
        }
        let topics = if record.keyed { Vec::new() } else { topics };
        let mut sources: Vec<_> =
            topics.iter().map(|topic| (self.client.names.stream(topic), name.clone())).collect();
        if record.replays && !record.keyed {
            sources.push((self.client.names.work(), names::consumer(&group, 0)));
        }
        for (stream, consumer) in sources {
            let Some(info) = consumer::info(&self.client, &stream, &consumer).await? else { continue };
            let here = info.num_pending + info.num_ack_pending;
            if here == 0 {
                continue;
            }
            unsettled += here;
            let source = Source::new(stream, consumer, false);
            let prefix = attempts::prefix(&self.client.names, &source);
            let attempts = kv::read_all::<Attempt>(&self.client, &format!("{prefix}>")).await?;
            status.retrying += attempts.iter().filter(|(_, stored)| stored.value.due > now).count() as u64;
            let mut which = json!({ "seq": info.ack_floor.stream_seq + 1 });
            let filter = info.config.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
            which["next_by_subj"] = json!(if filter.is_empty() { ">" } else { filter });
            if let Some(first) = kv::read_raw(&self.client, &source.stream, which).await? {
                oldest = Some(oldest.map_or(first.time, |oldest| oldest.min(first.time)));
            }
        }
        let own = all_members.iter().filter(|member| member.group == group.as_str());
        (status.members, status.in_flight) =
            own.fold((0, 0), |(count, out), member| (count + 1, out + member.out));
        status.waiting = u64::saturating_sub(unsettled, status.in_flight);
        status.oldest_unsettled = oldest;
        status.dead = self.dead_letters.count(&group).await?;
        Ok(status)
    }

    /// Fills in the state of a keyed group. Returns the number of unsettled messages and the time of the oldest one.
    async fn keyed_status(
        &self,
        status: &mut GroupStatus,
        record: &Record,
        topics: &[SmolStr],
        now: i64,
    ) -> Result<(u64, Option<Timestamp>)> {
        let progress = keyed::progress(&self.client, &status.group, record.epoch).await?.unwrap_or_default();
        let (mut unsettled, mut oldest): (u64, Option<Timestamp>) = (0, None);
        let replays = record.replays.then(|| SmolStr::new_static(REPLAYS));
        for topic in topics.iter().chain(&replays) {
            let mark = progress.topics.get(topic);
            let tries = mark.iter().flat_map(|mark| mark.open.values());
            status.retrying += tries.filter(|tried| tried.due > now).count() as u64;
            let (stream, filter, (count, first)) = if topic == REPLAYS {
                let (stream, filter) = (self.client.names.work(), self.client.names.replayed(&status.group));
                let floor = mark.map_or(0, Mark::floor);
                (
                    stream,
                    filter,
                    keyed::unsettled_replays(&self.client, &status.group, mark)
                        .await
                        .map(|count| (count, floor))?,
                )
            } else {
                (
                    self.client.names.stream(topic),
                    ">".to_owned(),
                    keyed::unsettled(&self.client, record, topic, mark).await?,
                )
            };
            unsettled += count;
            if count > 0
                && let Some(first) = kv::read_raw(
                    &self.client,
                    &stream,
                    json!({ "seq": first.max(1), "next_by_subj": filter }),
                )
                .await?
            {
                oldest = Some(oldest.map_or(first.time, |oldest| oldest.min(first.time)));
            }
        }
        Ok((unsettled, oldest))
    }

    async fn statuses(&self) -> Result<Vec<GroupStatus>> {
        let groups = self.groups.all_groups().await?;
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        // The members' status is read before the server's counts, so that a message settled in between counts once.
        let all_members = self.groups.presence.all().await?;
        let statuses = groups.into_iter().map(|(group, record)| {
            let all_members = &all_members;
            async move { self.status(group, &record, all_members).await }
        });
        let mut all = futures_util::future::try_join_all(statuses).await?;
        all.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(all)
    }

    async fn move_group(&self, group: &Group, start: Start) -> Result<()> {
        loop {
            let stored = self.groups.group(group).await?.ok_or_else(|| unknown(group))?;
            let old = stored.value;
            let new = Record {
                epoch: old.epoch + 1,
                from: StartAt::new(start),
                past: Vec::new(),
                starts: Default::default(),
                made: Default::default(),
                ..old.clone()
            };
            if kv::write(&self.client, &self.groups.group_subject(group), &new, stored.sequence)
                .await?
                .is_none()
            {
                continue;
            }
            keyed::depose(&self.client, group, new.epoch).await?;
            self.drop_consumers(group, &old).await?;
            let Some(stored) = self.groups.group(group).await? else { return Ok(()) };
            self.groups.provide(group, stored.value, Provision::Create).await?;
            return Ok(());
        }
    }

    /// Deletes the consumers of a group record, their stored attempts, and the group's replayed messages.
    async fn drop_consumers(&self, group: &Group, record: &Record) -> Result<()> {
        let name = names::consumer(group, record.epoch);
        for topic in self.groups.topics_of(record).await? {
            let stream = self.client.names.stream(&topic);
            consumer::delete(&self.client, &stream, &name).await?;
            let source = Source::new(stream, name.clone(), false);
            kv::purge(
                &self.client,
                &self.client.names.state(),
                &format!("{}>", attempts::prefix(&self.client.names, &source)),
            )
            .await?;
        }
        if record.replays {
            kv::purge(&self.client, &self.client.names.work(), &self.client.names.replayed(group)).await?;
        }
        Ok(())
    }

    async fn remove_group(&self, group: &Group) -> Result<()> {
        let stored = self.groups.group(group).await?.ok_or_else(|| unknown(group))?;
        let gone = Record { deleted: true, ..stored.value.clone() };
        let subject = self.groups.group_subject(group);
        if kv::write(&self.client, &subject, &gone, stored.sequence).await?.is_none() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the group was changed at the same time; try again",
            ));
        }
        self.drop_consumers(group, &stored.value).await?;
        if stored.value.replays {
            consumer::delete(&self.client, &self.client.names.work(), &names::consumer(group, 0)).await?;
        }
        let state = self.client.names.state();
        // The record stays, marked as deleted: members would create a missing record again.
        kv::purge(&self.client, &state, &self.client.names.record("leader", &token(group.as_str()))).await
    }

    async fn plan(&self, topology: &Topology) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for kind in [Kind::State, Kind::Dead, Kind::Work] {
            changes.extend(streams::compare(&self.client, kind).await?.1);
        }
        for topic in topics(topology)? {
            changes.extend(streams::compare(&self.client, Kind::Topic(&topic)).await?.1);
        }
        for spec in topology.subscriptions()? {
            let Mode::Group(group) = &spec.mode else { continue };
            let known = self.groups.group(group).await?.map(|stored| stored.value);
            let filters = known.as_ref().map(Record::patterns);
            let is = known.as_ref().zip(filters.as_deref()).map(|(record, filters)| (filters, record.keyed));
            changes.extend(compare_group(&spec, is));
            if let Some(record) = known {
                changes.extend(self.missing_consumers(group, &record).await?);
            }
        }
        Ok(changes)
    }

    /// Returns one change for each consumer that the group needs and that does not exist.
    async fn missing_consumers(&self, group: &Group, record: &Record) -> Result<Vec<Change>> {
        let name = names::consumer(group, record.epoch);
        let mut changes = Vec::new();
        let topics = if record.keyed { Vec::new() } else { self.groups.topics_of(record).await? };
        for stream in topics.iter().map(|topic| self.client.names.stream(topic)) {
            if consumer::info(&self.client, &stream, &name).await?.is_none() {
                let of = Difference::new("group", None, group.to_string());
                let object = format!("consumer {name} of stream {stream}");
                changes.push(Change::new(object, Action::Create, vec![of]));
            }
        }
        Ok(changes)
    }

    async fn carry_out(&self, topology: Topology) -> Result<Vec<Change>> {
        let changes = self.plan(&topology).await?;
        let blocked = |name: &str| {
            changes.iter().any(|change| change.action == Action::Blocked && change.object == name)
        };
        let owned = topics(&topology)?;
        let kinds = [Kind::State, Kind::Dead, Kind::Work].into_iter();
        for kind in kinds.chain(owned.iter().map(|topic| Kind::Topic(topic))) {
            let (info, change) = streams::compare(&self.client, kind).await?;
            if change.is_some_and(|change| !blocked(&change.object)) {
                streams::put(&self.client, kind, info.as_ref()).await?;
                if let (None, Kind::Topic(topic)) = (&info, kind) {
                    self.groups.join_wildcards(topic).await?;
                }
            }
        }
        for spec in topology.subscriptions()? {
            self.groups.join_group(&spec, Provision::Update).await?;
        }
        Ok(changes)
    }
}

/// Returns the topics that the topology lists or that its filters name.
fn topics(topology: &Topology) -> Result<Vec<String>> {
    let mut topics: Vec<String> = topology.topics.iter().map(ToString::to_string).collect();
    for topic in &topics {
        if event_transport::subject::Subject::new(topic)?.topic() != topic {
            return Err(Error::new(ErrorKind::InvalidName, "a topic is one token").with("topic", topic));
        }
    }
    for spec in topology.subscriptions()? {
        topics.extend(spec.filters.iter().filter_map(|filter| filter.topic().map(str::to_owned)));
    }
    topics.sort();
    topics.dedup();
    Ok(topics)
}

impl Admin for Operator {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.admin_step("list dead letters", async move {
            Ok(self.dead_letters.letters(&filter).await?.into_iter().map(|(letter, _)| letter).collect())
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("replay dead letters", async move { self.dead_letters.replay(&filter).await })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("drop dead letters", async move { self.dead_letters.drop_letters(&filter).await })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.admin_step("list groups", self.statuses())
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.admin_step("plan topology", async move { self.plan(&topology).await })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.admin_step("apply topology", self.carry_out(topology))
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.admin_step("seek", async move { self.move_group(&group, start).await })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.admin_step("delete group", async move { self.remove_group(&group).await })
    }

    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.admin_step("diagnose", diagnose(&self.client))
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        self.admin_step("ping", async move {
            let start = Instant::now();
            let _: Value = self.client.api("INFO", &json!({})).await.map_err(Error::from)?;
            Ok(start.elapsed())
        })
    }
}
